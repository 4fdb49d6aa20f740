"""An autoencoder of what attention adds in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.interventions.attention import AttentionSites
from clt_lightning.training.attention.learner import AttentionLearner
from clt_lightning.training.losses.auxk import AuxKConfig, auxiliary_request, auxk_loss
from clt_lightning.transcoder import ActivationStatistics, CrossLayerTranscoder
from clt_lightning.transcoder.attention import AttentionOutput


class AutoencoderLearner(AttentionLearner):
    """An autoencoder at `attn_out`, whose features start at outputs of the attention; see `HeadsLearner`."""

    attention: CrossLayerTranscoder

    def rebuild(
        self, clip: Backbone, sites: AttentionSites, generator: torch.Generator
    ) -> tuple[AttentionOutput, Tensor | None]:
        sae, whole = self.attention, self.own(sites)
        y = whole.flatten(1, 2)
        asked = AuxKConfig(self.config.auxk, dead_after_tokens=self.config.dead_after)  # both are of images
        request = auxiliary_request(asked, sae, self.images_since_fired, y.shape[1], generator)
        made = sae(y, auxiliary=request)
        y_hat, z_hat = self.output(clip, made.y_hat.view(whole.shape))
        out = AttentionOutput(y_hat, made.codes, [], z_hat)
        if request is None:
            return out, None
        tokens = request.tokens
        return out, auxk_loss(y[:, tokens], made.y_hat[:, tokens], made.auxiliary, self.own_var)

    def own(self, sites: AttentionSites) -> Tensor:
        """What is read and rebuilt, `(layers, images, positions, width)`."""
        return sites.y

    @property
    def own_var(self) -> Tensor:
        """`(layers,)`: its total variance."""
        return self.y_var

    def output(self, clip: Backbone, rebuilt: Tensor) -> tuple[Tensor, Tensor | None]:
        """`attn_out`, and `attn_z` where that is what was rebuilt."""
        return rebuilt, None

    def moments(self, sites: AttentionSites) -> list[tuple[Tensor, Tensor]]:
        return [(sites.y, sites.y)]

    def normalize(self, statistics: ActivationStatistics) -> None:
        if not bool(self.attention.normalized):  # a trained one's scales stay as they are
            self.attention.normalize(statistics)

    @torch.no_grad()
    def start(self, clip: Backbone, images: Sequence[Tensor]) -> None:
        """Every feature reads and writes the direction of one of the layer's outputs, less their mean."""
        sae, generator = self.attention, torch.Generator().manual_seed(self.seed)
        site = str(sae.sites.write)
        for layer in range(sae.n_layers):
            y = torch.cat([clip.read(batch, site, [layer])[site][0].float() for batch in images])
            mean, half = y.mean(0), -(-len(y) // 2)
            chosen = torch.randint(half, (sae.n_features,), generator=generator).to(y.device)
            rows = F.normalize(y[chosen] - mean, dim=1)
            blank = rows.norm(dim=1) < 0.5  # an output that is the mean
            rows[blank] = F.normalize(torch.randn(len(rows), y.shape[1], generator=generator), dim=1).to(rows)[blank]
            scale = sae.x_scale[layer] * sae.y_scale[layer]
            sae.W_enc[layer].copy_(rows / scale)
            sae.W_dec[layer][:, 0].copy_(rows)
            sae.b_enc[layer].copy_(-(rows @ mean) / sae.y_scale[layer])
            self._fit_size(layer, y[half:] if len(y) > half else y)  # on others: each rebuilds its own too well

    def _fit_size(self, layer: int, y: Tensor) -> None:
        """Multiplies a layer's codes by the factor that rebuilds some outputs best: features overlap."""
        sae = self.attention
        with sae.activation.not_tracking():
            made = sae.layer_sum({layer: sae.encode_layer(y, layer)}, layer)
        factor = (made * (y - sae.bias(layer))).sum() / made.square().sum().clamp(min=1e-30)
        if factor > 0:
            sae.W_enc[layer] *= factor
            sae.b_enc[layer] *= factor

    def written_norms(self) -> Tensor:
        return torch.stack([W[:, 0].norm(dim=-1) for W in self.attention.W_dec])

    @torch.no_grad()
    def after_step(self) -> None:
        for W, norms in zip(self.attention.W_dec, self.norms):
            W.copy_(F.normalize(W, dim=-1) * norms[:, None, None])
