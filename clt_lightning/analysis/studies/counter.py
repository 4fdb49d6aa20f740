"""Counting, batch by batch, how each set uses the features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from clt_lightning.analysis.studies.use import StudyUse
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import track
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

#: Strengths are counted in bins that are a 4096th of their value wide: so many bits of a float32's mantissa are dropped
_DROPPED = 11
_BINS = 1 << (31 - _DROPPED)


class StudyCounter:
    """Adds up, batch by batch, what `StudyUse` is made of.

    Args:
        names: of the sets; a batch's `study` numbers them.
        n_layers: L.
        n_features: F.
        d_out: width of y.
    """

    def __init__(self, names: Sequence[str], n_layers: int, n_features: int, d_out: int) -> None:
        if len(names) < 2:
            raise UserError(f"studies are compared with each other: name two or more, got {', '.join(names) or 'none'}")
        sets = len(names)
        self.names = tuple(names)
        self.images = torch.zeros(sets, dtype=torch.int64)
        self.tokens = torch.zeros(sets, dtype=torch.int64)
        self.counts = torch.zeros(sets, n_layers, n_features, dtype=torch.int64)
        self.power = torch.zeros(sets, n_layers, n_features, dtype=torch.float64)
        self.active = torch.zeros(sets, n_layers, dtype=torch.float64)
        self.rest = torch.zeros(sets, n_layers, dtype=torch.float64)
        self.squares = torch.zeros(sets, n_layers, dtype=torch.float64)
        self.sums = torch.zeros(sets, n_layers, d_out, dtype=torch.float64)
        self.strengths = torch.zeros(sets, _BINS, dtype=torch.int64)

    @torch.no_grad()
    def update(self, study: torch.Tensor, codes: Codes, y: torch.Tensor, y_hat: torch.Tensor) -> None:
        """Takes a batch of whole images.

        Args:
            study: `(images,)` int64, the set of each image.
            codes: `(L, tokens, F)`, image-major.
            y: `(L, tokens, d_out)` targets.
            y_hat: the same shape.

        Raises:
            UserError: tokens that are no multiple of the images, or a set without a name.
        """
        n = len(study)
        if codes.n_tokens % max(n, 1):
            raise UserError(f"{codes.n_tokens} tokens cannot be of {n} whole images")
        if n and not (int(study.min()) >= 0 and int(study.max()) < len(self.names)):
            raise UserError(f"a batch's study must be 0..{len(self.names) - 1} ({', '.join(self.names)}), got {study}")
        each, sets = codes.n_tokens // max(n, 1), len(self.names)
        of_token = study.cpu().repeat_interleave(each)
        ones = torch.ones_like(study.cpu())
        self.images.index_add_(0, study.cpu(), ones)
        self.tokens.index_add_(0, of_token, torch.ones_like(of_token))
        for layer in range(codes.n_layers):
            pairs, values = codes.layer(layer)
            fires = values != 0
            tokens, features = pairs.tokens[fires].cpu(), pairs.features[fires].cpu()
            on = torch.zeros(n, self.counts.shape[2], dtype=torch.bool)
            on[tokens // each, features] = True
            self.counts[:, layer].index_add_(0, study.cpu(), on.to(torch.int64))
            self.active[:, layer].index_add_(0, of_token[tokens], torch.ones(len(tokens), dtype=torch.float64))
            place = of_token[tokens] * self.power.shape[2] + features
            squares = values[fires].double().square().cpu()
            self.power[:, layer] += torch.bincount(place, squares, sets * self.power.shape[2]).view(sets, -1)
            bins = values[fires].abs().float().cpu().view(torch.int32) >> _DROPPED
            for i in range(sets):
                self.strengths[i] += torch.bincount(bins[of_token[tokens] == i], minlength=_BINS)
        rest = (y_hat.double() - y.double()).square().sum(-1).cpu()
        square = y.double().square().sum(-1).cpu()
        self.rest.index_add_(0, of_token, rest.T)
        self.squares.index_add_(0, of_token, square.T)
        self.sums.index_add_(0, of_token, y.double().cpu().transpose(0, 1))

    def result(self) -> StudyUse:
        """What has been added up."""
        n = self.tokens[:, None].clamp_min(1)
        variance = self.squares - self.sums.square().sum(-1) / n
        together = int(self.strengths.sum()) / max(1, int(self.tokens.sum()))
        thresholds = []
        for strengths, tokens in zip(self.strengths, self.tokens.tolist()):
            at_least = strengths.flip(0).cumsum(0).flip(0)  # how many codes are in this bin or above it
            total = int(at_least[0])
            wanted = min(round(together * tokens), total)
            thresholds.append(int((at_least >= wanted).nonzero()[-1]) if wanted else 0)
        edges = (torch.tensor(thresholds, dtype=torch.int32) << _DROPPED).view(torch.float32)
        return StudyUse(
            self.names,
            self.images.numpy(),
            self.counts.permute(1, 2, 0).numpy(),
            (self.active / n).numpy(),
            (self.rest / variance.clamp_min(1e-300)).numpy(),
            edges.double().numpy(),
            (self.power / n[..., None]).permute(1, 2, 0).numpy(),
        )


@torch.no_grad()
def study_use(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    batches: Iterable[Any],
    names: Sequence[str],
    progress: bool = False,
) -> StudyUse:
    """How each set uses the features, from batches with `image` and `study`.

    Args:
        clip: the backbone.
        clt: the transcoder, of its MLPs or of other sites.
        batches: as of `data.Studies(...).eval_dataloader("test")`.
        names: of the sets.
        progress: say how far it is.

    Raises:
        UserError: a batch without `study`.
    """
    counter = StudyCounter(names, clt.n_layers, clt.n_features, clt.d_out)
    blocks = clt.sites.resolve(clip.n_layers, clip.name)
    sites = (str(clt.sites.read), str(clt.sites.write))
    was = clt.training
    clt.eval()
    for batch in track(batches, "studies", unit="batches", show=progress):
        if "study" not in batch:
            raise UserError("a batch has no `study`: read several sets with data.Studies")
        images = batch["image"].to(clt.b_dec.device)
        acts = clip.capture(images, blocks, sites=sites)
        out = clt(acts.x)
        counter.update(batch["study"], clt.gather_codes(out.codes), acts.y, out.y_hat)
    clt.train(was)
    return counter.result()
