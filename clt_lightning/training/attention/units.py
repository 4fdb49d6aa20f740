"""Units of sparse attention in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.interventions.attention import AttentionSites, rebuild_attention
from clt_lightning.training.attention.learner import AttentionLearner
from clt_lightning.training.attention.start import start_units
from clt_lightning.training.losses.reconstruction import normalized_error
from clt_lightning.transcoder import ActivationStatistics
from clt_lightning.transcoder.attention import AttentionOutput, SparseAttention


class UnitsLearner(AttentionLearner):
    """Units, which start at what the model's heads write."""

    attention: SparseAttention

    def rebuild(
        self, clip: Backbone, sites: AttentionSites, generator: torch.Generator
    ) -> tuple[AttentionOutput, Tensor | None]:
        out, dead = rebuild_attention(clip, self.attention, sites), self.dead
        # one look at the device for all layers
        silent = [layer for layer, some in enumerate(dead.any(1).tolist()) if some] if self.config.auxk else []
        if not silent:
            return out, None
        y, y_hat = sites.y.flatten(1, 2), out.y_hat.flatten(1, 2)
        rests = (y.to(y_hat) - y_hat).detach()
        found = [self._auxiliary(layer, out, rests[layer], dead[layer]) for layer in silent]
        return out, torch.stack(found).sum() / len(y)

    def _auxiliary(self, layer: int, out: AttentionOutput, rest: Tensor, dead: Tensor) -> Tensor:
        units, index = self.attention, dead.nonzero()[:, 0]
        pre = out.pre[layer][:, index]
        top = torch.topk(pre, min(len(index), max(1, units.d_model // 2)), dim=1)
        codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        made = codes @ units.W_dec[layer][index] * units.y_scale[layer]
        return normalized_error(rest[None], made[None], self.y_var[layer : layer + 1])[0]

    def moments(self, sites: AttentionSites) -> list[tuple[Tensor, Tensor]]:
        return [(sites.x, sites.y)]

    def normalize(self, statistics: ActivationStatistics) -> None:
        self.attention.normalize(statistics)

    def start(self, clip: Backbone, images: Sequence[Tensor]) -> None:
        start_units(clip, self.attention, images, self.seed)

    def written_norms(self) -> Tensor:
        norms: Tensor = self.attention.W_dec.norm(dim=-1)
        return norms

    def after_step(self) -> None:
        self.attention.hold_decoders(self.norms)
