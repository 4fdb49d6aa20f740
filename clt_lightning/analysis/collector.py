"""One layer's features over a stream of images: sums, top images, a random sample, patch maps; no loop a feature."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.metrics import metric_device
from clt_lightning.transcoder.pairs import Pairs


def key_seeds(keys: Sequence[str]) -> Tensor:
    """`(images,)` int64 hashes of keys: the same image gets the same number in every process and run."""
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser: every bit of the input moves every bit of the output."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


#: Bins of the histogram of codes: quarter octaves from 2^-12 to 2^4, what lies outside in the first and the last
BINS = 64


def code_bins(values: Tensor) -> Tensor:
    """The histogram bin of each code, by magnitude: `floor(4 log2 |z| + 48)`, cut to 0..63."""
    return (4 * (values.abs().log2() + 12)).floor().clamp(0, BINS - 1).long()


@dataclass
class Best:
    """For every feature the images with the highest scores.

    Attributes:
        score: `(F, k)` descending; -1 where there is none.
        value: `(F, k)` the image's code of largest magnitude, with its sign.
        image: `(F, k)` int64 number of the image in this process; -1 where there is none.
        map: `(F, k, P)` the codes at every position.
    """

    score: Tensor
    value: Tensor
    image: Tensor
    map: Tensor

    @classmethod
    def empty(cls, n_features: int, k: int, positions: int, device: torch.device) -> Best:
        return cls(
            torch.full((n_features, k), -1.0, device=device),
            torch.zeros(n_features, k, device=device),
            torch.full((n_features, k), -1, dtype=torch.int64, device=device),
            torch.zeros(n_features, k, positions, device=device),
        )

    @property
    def k(self) -> int:
        return self.score.shape[1]

    def merge(self, other: Best) -> Best:
        """The best of two disjoint sets of images."""
        score, chosen = torch.cat([self.score, other.score], 1).topk(self.k, 1)
        maps = torch.cat([self.map, other.map], 1)
        return Best(
            score,
            torch.cat([self.value, other.value], 1).gather(1, chosen),
            torch.cat([self.image, other.image], 1).gather(1, chosen),
            maps.gather(1, chosen[:, :, None].expand(-1, -1, maps.shape[2])),
        )


class _Batch:
    """One layer of a batch: every active (image, position, feature) and each image's extreme code of each feature."""

    def __init__(self, pairs: Pairs, values: Tensor, n_images: int, device: torch.device) -> None:
        values = values.detach().to(device, torch.float32)
        active = values != 0
        positions = pairs.n_tokens // max(n_images, 1)
        tokens = pairs.tokens.to(device)[active]
        self.values, self.features = values[active], pairs.features.to(device)[active]
        self.positions, self.images = tokens % positions, tokens // positions
        self.n_images, self.n_features = n_images, pairs.n_features
        self.slot = self.images * self.n_features + self.features
        size = n_images * self.n_features
        magnitude = self.values.new_zeros(size).scatter_reduce_(0, self.slot, self.values.abs(), "amax")
        extreme = self.values.abs() == magnitude[self.slot]
        value = torch.zeros_like(magnitude).index_put_((self.slot[extreme],), self.values[extreme])
        self.magnitude = magnitude.view(n_images, self.n_features)
        self.value = value.view(n_images, self.n_features)

    def maps(self, images: Tensor, features: Tensor, n_positions: int) -> Tensor:
        """`(pairs, P)` codes at every position, of given (image, feature) pairs."""
        row = torch.full((self.n_images * self.n_features,), -1, dtype=torch.int64, device=self.values.device)
        row[images * self.n_features + features] = torch.arange(len(images), device=row.device)
        rows = row[self.slot]
        wanted = rows >= 0
        out = self.values.new_zeros(len(images), n_positions)
        out[rows[wanted], self.positions[wanted]] = self.values[wanted]
        return out


class LayerCollector:
    """What one layer's features respond to, in bounded memory, mergeable over processes.

    Memory in bytes, F features: `4 F (k + samples) (P + 4)` for images and maps, `8 F (classes + embed_dim)` for sums,
    `4 F (classes + P + 64)` for counts.

    Args:
        n_features: F.
        n_positions: P, tokens per image.
        embed_dim: width of the image embeddings.
        n_classes: 0 without labels.
        k: top images per feature.
        samples: images of a uniform sample of those on which a feature is active.
        device: where to keep the state.
    """

    def __init__(
        self,
        n_features: int,
        n_positions: int,
        embed_dim: int,
        n_classes: int,
        k: int = 16,
        samples: int = 8,
        device: torch.device | str = "cpu",
    ) -> None:
        self.n_features, self.n_positions, self.n_classes = n_features, n_positions, n_classes
        self.device = metric_device(torch.device(device))

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=self.device)

        self.sums = {
            "tokens": zeros(n_features),  # tokens on which it is active
            "images": zeros(n_features),
            "code": zeros(n_features),
            "a": zeros(n_features),  # of image-level magnitudes
            "a2": zeros(n_features),
            "ae": zeros(n_features, embed_dim),
            "class": zeros(n_features, n_classes),
        }
        counts = {"class_images": n_classes, "histogram": BINS, "positions": n_positions, "class_total": n_classes}
        for name, width in counts.items():
            rows = () if name == "class_total" else (n_features,)
            self.sums[name] = torch.zeros(*rows, width, dtype=torch.int32, device=self.device)
        self.max_code = torch.zeros(n_features, device=self.device)
        self.top = Best.empty(n_features, k, n_positions, self.device)
        self.sample = Best.empty(n_features, samples, n_positions, self.device)

    def update(
        self,
        pairs: Pairs,
        values: Tensor,
        embeddings: Tensor,
        labels: Tensor,
        seeds: Tensor,
        first_image: int,
    ) -> None:
        """Take in one batch.

        Args:
            pairs: active pairs of whole images.
            values: their codes.
            embeddings: `(images, embed_dim)` unit.
            labels: `(images,)`, -1 for none.
            seeds: `(images,)` from `key_seeds`, for the random sample.
            first_image: number of the batch's first image in this process.
        """
        batch = _Batch(pairs, values, len(embeddings), self.device)
        labels, seeds = labels.to(self.device), seeds.to(self.device)
        s, F = self.sums, self.n_features
        s["tokens"] += torch.bincount(batch.features, minlength=F)
        s["code"].index_add_(0, batch.features, batch.values.double())
        cells = batch.features * self.n_positions + batch.positions
        s["positions"] += torch.bincount(cells, minlength=F * self.n_positions).view(F, -1).int()
        cells = batch.features * BINS + code_bins(batch.values)
        s["histogram"] += torch.bincount(cells, minlength=F * BINS).view(F, -1).int()
        wide = batch.magnitude.double()
        s["images"] += (wide > 0).sum(0)
        s["a"] += wide.sum(0)
        s["a2"] += wide.square().sum(0)
        s["ae"] += wide.T @ embeddings.to(self.device).double()
        if self.n_classes:
            known = labels >= 0
            one_hot = torch.nn.functional.one_hot(labels[known], self.n_classes).double()
            s["class"] += wide[known].T @ one_hot
            s["class_images"] += ((wide[known] > 0).double().T @ one_hot).int()
            s["class_total"] += one_hot.sum(0).int()
        magnitude = batch.magnitude.T
        best = batch.value.T.gather(1, magnitude.argmax(1, keepdim=True))[:, 0]
        self.max_code = torch.where(best.abs() > self.max_code.abs(), best, self.max_code)
        self._enter(self.top, magnitude.where(magnitude > 0, -1.0), batch, first_image)
        if self.sample.k:
            # a uniform priority in [0, 1) of every (image, feature): the k highest are a uniform sample
            numbers = _mix(seeds[None] + torch.arange(F, device=self.device)[:, None] * -0x61C8864680B583EB)
            priority = ((numbers >> 40) & 0xFFFFFF).float() / (1 << 24)
            self._enter(self.sample, priority.where(magnitude > 0, -1.0), batch, first_image)

    def _enter(self, best: Best, scores: Tensor, batch: _Batch, first_image: int) -> None:
        """Let a batch's `(F, images)` scores compete; only features with a newcomer are rewritten."""
        rows = (scores.amax(1) > best.score[:, -1]).nonzero()[:, 0]
        if not len(rows):
            return
        k = best.k
        score, chosen = torch.cat([best.score[rows], scores[rows]], 1).topk(k, 1)
        new = (chosen >= k) & (score >= 0)
        old = chosen.clamp(max=k - 1)
        image, value = best.image[rows].gather(1, old), best.value[rows].gather(1, old)
        maps = best.map[rows].gather(1, old[:, :, None].expand(-1, -1, self.n_positions))
        features = rows[:, None].expand(-1, k)[new]
        images = (chosen - k)[new]
        image[new] = images + first_image
        value[new] = batch.value[images, features]
        maps[new] = batch.maps(images, features, self.n_positions)
        empty = score < 0
        image[empty], value[empty] = -1, 0.0
        maps[empty] = 0.0
        best.score[rows], best.image[rows], best.value[rows], best.map[rows] = score, image, value, maps

    def shift_images(self, offset: int) -> None:
        """Renumber images, before merging with other processes."""
        for best in (self.top, self.sample):
            best.image = torch.where(best.image >= 0, best.image + offset, best.image)

    def merge(self, other: LayerCollector) -> None:
        """Take in what another process collected on other images (numbered apart by `shift_images`)."""
        for name, total in self.sums.items():
            total += other.sums[name].to(self.device)
        theirs = other.max_code.to(self.device)
        self.max_code = torch.where(theirs.abs() > self.max_code.abs(), theirs, self.max_code)
        self.top, self.sample = self.top.merge(other.top), self.sample.merge(other.sample)

    def to(self, device: torch.device | str) -> LayerCollector:
        """Move the state, in place."""
        self.device = torch.device(device)
        self.sums = {name: total.to(self.device) for name, total in self.sums.items()}
        self.max_code = self.max_code.to(self.device)
        for best in (self.top, self.sample):
            for name in ("score", "value", "image", "map"):
                setattr(best, name, getattr(best, name).to(self.device))
        return self
