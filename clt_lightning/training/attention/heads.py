"""An autoencoder of the heads' outputs in training."""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.interventions.attention import AttentionSites
from clt_lightning.interventions.heads import HeadProjection
from clt_lightning.training.attention.autoencoder import AutoencoderLearner
from clt_lightning.training.attention.config import AttentionConfig
from clt_lightning.training.losses.reconstruction import normalized_error
from clt_lightning.transcoder import ActivationStatistics, CrossLayerTranscoder
from clt_lightning.transcoder.attention import AttentionOutput


class HeadsLearner(AutoencoderLearner):
    """An autoencoder at `attn_z`: it learns to rebuild these, and what the model's own projection makes of them.

    Attributes:
        z_var: `(layers,)` total variance of `attn_z`: the scale of its errors.

    Raises:
        UserError: as `AttentionLearner`; or a backbone where a norm stands behind the projection.
    """

    z_var: Tensor

    def __init__(self, clip: Backbone, attention: CrossLayerTranscoder, config: AttentionConfig, seed: int) -> None:
        super().__init__(clip, attention, config, seed)
        HeadProjection(clip).check()
        self.register_buffer("z_var", torch.ones(attention.n_layers))

    def losses(
        self, clip: Backbone, sites: AttentionSites, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], AttentionOutput]:
        """As of the others, and `attention_z`: the mean over layers of the normalised error of `attn_z`."""
        parts, out = super().losses(clip, sites, generator)
        assert out.z_hat is not None
        z, z_hat = sites.of_heads().flatten(1, 2), out.z_hat.flatten(1, 2)
        return parts | {"attention_z": normalized_error(z, z_hat, self.z_var).mean()}, out

    def own(self, sites: AttentionSites) -> Tensor:
        return sites.of_heads()

    @property
    def own_var(self) -> Tensor:
        return self.z_var

    def output(self, clip: Backbone, rebuilt: Tensor) -> tuple[Tensor, Tensor | None]:
        return HeadProjection(clip)(rebuilt), rebuilt

    def moments(self, sites: AttentionSites) -> list[tuple[Tensor, Tensor]]:
        return [(sites.of_heads(), sites.of_heads()), (sites.y, sites.y)]

    def normalize(self, statistics: ActivationStatistics) -> None:
        super().normalize(statistics)
        self.z_var.copy_(torch.where(statistics.y_var > 0, statistics.y_var, 1.0))
