"""Mean codes of many images, taken as a split passes by: what a cue is told by, and what an edit is fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis.debias.predictor import embed
from clt_lightning.backbone import Backbone
from clt_lightning.interventions.mean_ablation import Feature
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder

_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class MeanCodes:
    """Of some images and every feature.

    Attributes:
        activity: `(n, layers, F)` float16: mean codes over positions.
        labels: `(images,)`.
        groups: `(images,)`, -1 where there are none.
        embeddings: `(images, embed_dim)` unit.
        rows: `(images,)`: where each image stands in `activity`, which selections share.
    """

    activity: Tensor
    labels: Tensor
    groups: Tensor
    embeddings: Tensor
    rows: Tensor

    def select(self, chosen: Tensor) -> MeanCodes:
        """Some of the images."""
        parts = (part[chosen] for part in (self.labels, self.groups, self.embeddings, self.rows))
        return MeanCodes(self.activity, *parts)

    def layer(self, layer: int) -> Tensor:
        """`(images, F)`."""
        return self.activity[self.rows, layer].float()

    def picked(self, features: Sequence[Feature]) -> Tensor:
        """`(images, features)`."""
        layers, numbers = (torch.tensor(part) for part in zip(*features))
        return self.activity[self.rows[:, None], layers, numbers].float()


def codes_of(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    batches: Iterable[dict[str, Any]],
    chosen: Tensor,
    what: str = "",
) -> MeanCodes:
    """Mean codes of some of a split's labelled images.

    Args:
        clip: the backbone.
        clt: the transcoder.
        batches: `image`, `label`, `group`.
        chosen: `(images,)` ascending places among the labelled images.
        what: for the progress line; empty: none is shown.

    Raises:
        UserError: no labels, or a transcoder of sites that the backbone lacks.
    """
    blocks = check_fit(clip, clt)
    seen: dict[int, Tensor] = {}
    rows: list[Tensor] = []

    def see(block: int, x: Tensor) -> None:
        layer = blocks.index(block)
        codes = clt.encode_layer(x.flatten(0, 1), layer).dense_layer(0).detach()
        seen[layer] = codes.unflatten(0, (len(x), -1)).mean(1).clamp(max=_LARGEST).half().cpu()

    def keep(_: dict[str, Any]) -> None:
        rows.append(torch.stack([seen[layer] for layer in range(clt.n_layers)], 1))

    watched = partial(clip.watch, see, sorted(blocks), str(clt.sites.read))
    found = embed(clip, _some(batches, chosen), watched, what, len(chosen), keep)
    groups = torch.full_like(found.labels, -1) if found.groups is None else found.groups
    return MeanCodes(torch.cat(rows), found.labels, groups, found.embeddings, torch.arange(len(found)))


def _some(batches: Iterable[dict[str, Any]], chosen: Tensor) -> Iterator[dict[str, Any]]:
    """Batches of those labelled images alone."""
    wanted, passed = torch.zeros(int(chosen.max()) + 1, dtype=torch.bool), 0
    wanted[chosen] = True
    for batch in batches:
        known = (batch["label"] >= 0).nonzero().flatten()
        here = wanted[passed : passed + len(known)]
        passed += len(known)
        if bool(here.any()):
            some = known[: len(here)][here]
            yield {name: batch[name][some] for name in ("image", "label", "group") if name in batch}
        if passed >= len(wanted):
            return
