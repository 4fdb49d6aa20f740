"""Which images are alike to a layer: nearest neighbours by sparse code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from clt_lightning.analysis.run_part import RunPart
from clt_lightning.analysis.table import ImageTable
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json, write_json
from clt_lightning.transcoder import Codes

_CHUNK = 1 << 24


def image_codes(codes: Codes, n_images: int, m: int) -> tuple[Tensor, Tensor]:
    """One unit sparse vector an image and layer: the mean code over its tokens, cut to the m largest entries.

    Args:
        codes: of whole images.
        n_images: how many.
        m: entries kept.

    Returns:
        `(images, layers, m)` int32 feature indices and float32 values; a value of 0 is padding.
    """
    m = min(m, codes.n_features)
    positions = codes.n_tokens // n_images
    indices, values = [], []
    for layer in range(codes.n_layers):
        pairs, v = codes.layer(layer)
        slot = (pairs.tokens // positions) * codes.n_features + pairs.features
        mean = v.detach().float().new_zeros(n_images * codes.n_features).index_add_(0, slot, v.detach().float())
        mean = mean.view(n_images, -1) / positions
        index = mean.abs().topk(m, 1).indices
        kept = mean.gather(1, index)
        values.append(kept / kept.norm(dim=1, keepdim=True).clamp(min=1e-30))
        indices.append(index.int())
    return torch.stack(indices, 1), torch.stack(values, 1)


@dataclass(frozen=True)
class Retrieval(RunPart):
    """Sparse codes of the images of a split, to find the neighbours of any of them.

    Attributes:
        keys: images, sorted.
        labels: `(n,)`, -1 for none.
        n_features: F.
        indices: `(L, n, m)` int32.
        values: `(L, n, m)` float32, unit norm.
        step: of the weights; None where it is not known.
    """

    folder_name = "retrieval"

    keys: list[str] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    n_features: int
    indices: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)
    step: int | None = None

    @property
    def n_layers(self) -> int:
        return len(self.indices)

    def similarities(self, layer: int, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Cosines `(n,)` of one sparse vector, `indices (m,)` and `values (m,)`, with every image in a layer."""
        dense = np.zeros(self.n_features, dtype=np.float32)
        np.add.at(dense, indices, values)
        step = max(1, _CHUNK // self.indices.shape[2])
        rows = range(0, len(self.keys), step)
        parts = [(dense[self.indices[layer, i : i + step]] * self.values[layer, i : i + step]).sum(1) for i in rows]
        return np.concatenate(parts)

    def nearest(self, image: int, layer: int, k: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """The images nearest to one of the split, itself left out.

        Args:
            image: its number (see `keys`).
            layer: which layer's codes.
            k: how many.

        Returns:
            their numbers, nearest first, and cosines.
        """
        cosines = self.similarities(layer, self.indices[layer, image], self.values[layer, image])
        cosines[image] = -np.inf
        order = np.argsort(-cosines, kind="stable")[: min(k, len(cosines) - 1)]
        return order, cosines[order]

    def nearest_to(self, codes: Codes, k: int = 8) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each layer the images nearest to one new image, whose codes are given (all its tokens)."""
        indices, values = (t[0].cpu().numpy() for t in image_codes(codes, 1, self.indices.shape[2]))
        found = []
        for layer in range(self.n_layers):
            cosines = self.similarities(layer, indices[layer], values[layer])
            order = np.argsort(-cosines, kind="stable")[:k]
            found.append((order, cosines[order]))
        return found

    def _write(self, folder: Path) -> None:
        np.savez_compressed(folder / "index.npz", indices=self.indices, values=self.values)
        info = {"schema": 1, "step": self.step, "features": self.n_features, "keys": self.keys}
        write_json(folder / "images.json", info | {"labels": self.labels.tolist()}, indent=None)

    @classmethod
    def load(cls, run: str | Path) -> Retrieval:
        """Read `<run>/retrieval/`.

        Raises:
            UserError: it is not there.
        """
        folder = Path(run) / "retrieval"
        if not (folder / "index.npz").is_file():
            raise UserError(f"{folder} holds no codes of images: run `python -m clt_lightning test --run {run}`")
        info = read_json(folder / "images.json")
        with np.load(folder / "index.npz", allow_pickle=False) as file:
            indices, values = file["indices"], file["values"]
        labels = np.array(info["labels"], dtype=np.int64)
        return cls(info["keys"], labels, info["features"], indices, values, info.get("step"))


class RetrievalCollector:
    """Collects `Retrieval` over a stream of images.

    Args:
        n_features: F.
        m: entries kept of each image and layer.
    """

    def __init__(self, n_features: int, m: int = 64) -> None:
        self.n_features, self.m = n_features, m
        self.table = ImageTable()

    def update(self, codes: Codes, keys: Sequence[str], labels: Int[Tensor, " images"]) -> None:
        """Take in one batch of whole images."""
        indices, values = image_codes(codes, len(keys), self.m)
        self.table.add(keys, {"indices": indices, "values": values, "labels": labels})

    def result(self) -> Retrieval:
        """The codes of all processes' images; every process must call this."""
        keys, columns = self.table.gathered()
        indices, values = (np.ascontiguousarray(columns[name].swapaxes(0, 1)) for name in ("indices", "values"))
        return Retrieval(keys.tolist(), columns["labels"], self.n_features, indices, values)
