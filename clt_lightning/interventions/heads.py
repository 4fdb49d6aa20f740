"""From the heads' outputs to what attention adds: the model's own output projection, where that is all there is."""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError


class HeadProjection:
    """What every attention layer makes of `attn_z`: an affine map, LayerScale included.

    Args:
        clip: the backbone.

    Raises:
        UserError: an attention of a form that is not known.
    """

    def __init__(self, clip: Backbone) -> None:
        self.clip = clip
        self.parts = [clip.attention_parts(layer) for layer in range(clip.n_layers)]
        self.scales = [clip.family.branch_scale(layer, 1) for layer in range(clip.n_layers)]

    def weight(self, layer: int, like: Tensor) -> Tensor:
        """`(d_model, width)`, in the type and on the device of `like`."""
        weight, scale = self.parts[layer].out.weight.detach().to(like), self.scales[layer]
        return weight if scale is None else weight * scale.detach().to(like)[:, None]

    def bias(self, layer: int, like: Tensor) -> Tensor:
        """`(d_model,)`; zeros where there is none."""
        own, scale = self.parts[layer].out.bias, self.scales[layer]
        if own is None:
            return like.new_zeros(self.clip.d_model)
        bias = own.detach().to(like)
        return bias if scale is None else bias * scale.detach().to(like)

    def __call__(self, z: Tensor) -> Tensor:
        """`attn_out` of `attn_z`.

        Args:
            z: `(layers, ..., width)`.

        Returns:
            `(layers, ..., d_model)`, differentiable.
        """
        return torch.stack([rows @ self.weight(layer, rows).T + self.bias(layer, rows) for layer, rows in enumerate(z)])

    @torch.no_grad()
    def check(self) -> None:
        """Whether the model does the same, on noise.

        Raises:
            UserError: it does not: a norm stands behind the projection.
        """
        clip = self.clip
        noise = torch.randn(1, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
        found = clip.read(noise.to(clip.device), ("attn_z", "attn_out"))
        made = self(found["attn_z"].float())
        for layer, y in enumerate(found["attn_out"].float()):
            if (made[layer] - y).norm() > 2e-2 * made[layer].norm():
                raise UserError(
                    f"'{clip.name}', layer {layer}: the output of attention is no sum over heads (a norm stands "
                    "behind them), so that heads have no shares in it"
                )
