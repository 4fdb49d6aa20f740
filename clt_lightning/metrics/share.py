"""How much of a reconstruction is sparse: the features' share of its variance, the linear skip's being the rest."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.metrics.base import ExactMetric, blocks, check_same, check_shape
from clt_lightning.metrics.reconstruction import merge_moments, token_moments


class FeaturesShare(ExactMetric):
    """`Cov(f, y_hat) / Var(y_hat)` per layer, summed over dimensions: 1 without a skip path.

    f is what the features add, `y_hat - f` is the linear skip (and a constant bias). Where the two work against each
    other the share can leave 0..1.

    Args:
        n_layers: layers L.
        d_model: width d.
    """

    per_layer = True
    moments: Tensor

    def __init__(self, n_layers: int, d_model: int) -> None:
        super().__init__()
        self.n_layers, self.d_model = n_layers, d_model
        start = torch.zeros(3, n_layers, 2 + d_model, dtype=torch.float64)
        self.add_state("moments", start, dist_reduce_fx=merge_moments)

    def update(self, features: Float[Tensor, "layers ... d"], y_hat: Float[Tensor, "layers ... d"]) -> None:
        """Take in a batch.

        Args:
            features: `(layers, tokens..., d)` what the features add to each layer.
            y_hat: the whole reconstruction, same shape.

        Raises:
            UserError: on another shape.
        """
        check_shape(self, "y_hat", y_hat, expected=(self.n_layers, self.d_model))
        check_same(self, ("features", "y_hat"), features, y_hat)
        for layer in range(self.n_layers):
            for f, y in blocks(features[layer], y_hat[layer], device=self.moments.device):
                new = torch.stack([token_moments(part) for part in (f, y, y - f)])
                self.moments[:, layer] = merge_moments(torch.stack([self.moments[:, layer], new]))

    def compute(self) -> Float[Tensor, " layers"]:
        """`(L,)` float64; NaN where the reconstruction never varies."""
        features, whole, rest = self.moments[..., 1].unbind()
        return (features + whole - rest) / (2 * whole)
