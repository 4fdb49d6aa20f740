"""How well the MLP outputs are rebuilt: FVU, R2, mean squared error, cosine."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.metrics.base import ExactMetric, MeanPerLayer, blocks, check_same, check_shape


def merge_moments(stacked: Tensor) -> Float[Tensor, "... moments"]:
    """Merge the moments of disjoint sets of tokens (Chan, Golub and LeVeque 1983).

    Subtracting two huge sums (sum of squares minus square of the sum) loses all digits when the mean is large against
    the spread, and massive activations are exactly that: so means and centred sums are kept and merged instead.

    Args:
        stacked: `(sets, ..., 2 + d)` float64: token count, squared deviations from the mean summed over tokens and
            dimensions, mean per dimension.

    Returns:
        `(..., 2 + d)`: the same of the union.
    """
    merged = stacked[0]
    for other in stacked[1:]:
        n_a, n_b = merged[..., 0], other[..., 0]
        n = n_a + n_b
        share = torch.where(n > 0, n_b / n.clamp(min=1), 0.0)
        shift = other[..., 2:] - merged[..., 2:]
        squares = merged[..., 1] + other[..., 1] + shift.square().sum(-1) * n_a * share
        merged = torch.cat([torch.stack([n, squares], -1), merged[..., 2:] + shift * share[..., None]], -1)
    return merged


def token_moments(tokens: Float[Tensor, "n d"]) -> Float[Tensor, " moments"]:
    """Count, summed squared deviations and mean of `(n, d)` float64 tokens, n > 0, as one vector `(2 + d,)`."""
    # Measured from the first token: a constant dimension then has exactly no variance, whatever its value.
    origin = tokens[0]
    deltas = tokens - origin
    mean = deltas.mean(0)
    squares = deltas.sub_(mean).square_().sum()
    return torch.cat([squares.new_tensor([tokens.shape[0]]), squares[None], origin + mean])


def unexplained(error: Float[Tensor, "*shape"], variance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The fraction of variance unexplained, from summed squares of the same shape.

    No variance and no error is a perfect reconstruction (0); an error without variance is infinitely bad.
    """
    variance = variance.clamp(min=0)  # a difference of sums can round below it
    return torch.where((variance == 0) & (error == 0), 0.0, error / variance)


class ReconstructionSums(ExactMetric):
    """Squared errors and variance per layer; the base of `FVU`, `R2` and `MSE`.

    Args:
        n_layers: layers L.
        d_model: width d of the activations.
    """

    per_layer = True
    moments: Tensor
    error: Tensor

    def __init__(self, n_layers: int, d_model: int) -> None:
        super().__init__()
        self.n_layers, self.d_model = n_layers, d_model
        start = torch.zeros(n_layers, 2 + d_model, dtype=torch.float64)
        self.add_state("moments", start, dist_reduce_fx=merge_moments)
        self.add_state("error", torch.zeros(n_layers, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, y: Float[Tensor, "layers ... d"], y_hat: Float[Tensor, "layers ... d"]) -> None:
        """Take in one batch.

        Args:
            y: `(L, tokens..., d)` true MLP outputs, any floating type, any number of token dimensions.
            y_hat: the same shape: their reconstruction.

        Raises:
            UserError: if a shape does not fit.
        """
        check_shape(self, "y", y, expected=(self.n_layers, self.d_model))
        check_same(self, ("y", "y_hat"), y, y_hat)
        for layer in range(self.n_layers):
            for true, rebuilt in blocks(y[layer], y_hat[layer], device=self.moments.device):
                self.error[layer] += (true - rebuilt).square_().sum()
                self.moments[layer] = merge_moments(torch.stack([self.moments[layer], token_moments(true)]))

    @property
    def n_tokens(self) -> Float[Tensor, " layers"]:
        """`(L,)` tokens seen on this process since the last reset."""
        return self.moments[:, 0]

    def _fvu(self) -> Tensor:
        error, variance = self.error, self.moments[:, 1]
        return torch.where(self.moments[:, 0] > 0, unexplained(error, variance), torch.nan)

    def _mse(self) -> Tensor:
        return self.error / (self.moments[:, 0] * self.d_model)


class FVU(ReconstructionSums):
    """Fraction of variance unexplained, per layer: `sum ||y - y_hat||^2 / sum ||y - mean(y)||^2`.

    The mean is per dimension and over the whole split: with one scalar mean a single massive dimension would make
    everything look explained. `fvu.compute().mean()` is the mean over layers that the paper reports.

    A layer without variance has FVU 0 if it is rebuilt without error and infinity otherwise; without tokens it is NaN.
    """

    higher_is_better = False

    def compute(self) -> Float[Tensor, " layers"]:
        """The FVU of each layer, `(L,)` float64."""
        return self._fvu()


class R2(ReconstructionSums):
    """Fraction of variance explained, per layer: `1 - FVU`."""

    higher_is_better = True

    def compute(self) -> Float[Tensor, " layers"]:
        """The R2 of each layer, `(L,)` float64."""
        return 1 - self._fvu()


class MSE(ReconstructionSums):
    """Squared error per layer, averaged over tokens and dimensions; NaN for a layer without tokens."""

    higher_is_better = False

    def compute(self) -> Float[Tensor, " layers"]:
        """The mean squared error of each layer, `(L,)` float64."""
        return self._mse()


class FVUAndMSE(ReconstructionSums):
    """Both from the same sums, which are taken once."""

    per_layer = False

    def compute(self) -> Float[Tensor, "2 layers"]:
        """`(2, L)` float64: what `FVU` and `MSE` give."""
        return torch.stack([self._fvu(), self._mse()])


class Cosine(MeanPerLayer):
    """Cosine of true and rebuilt MLP output over the feature axis, averaged over tokens, per layer.

    A token counts as 1 where both vectors are exactly zero, and as 0 where one of them is.

    Args:
        n_layers: layers L.
    """

    higher_is_better = True

    def update(self, y: Float[Tensor, "layers ... d"], y_hat: Float[Tensor, "layers ... d"]) -> None:
        """Take in one batch of `(L, tokens..., d)` true and rebuilt MLP outputs.

        Raises:
            UserError: if a shape does not fit.
        """
        check_shape(self, "y", y, expected=(self.n_layers, None))
        check_same(self, ("y", "y_hat"), y, y_hat)
        for layer in range(self.n_layers):
            for true, rebuilt in blocks(y[layer], y_hat[layer], device=self.total.device):
                norms = true.norm(dim=-1), rebuilt.norm(dim=-1)
                cosines = torch.linalg.vecdot(true, rebuilt) / (norms[0] * norms[1])
                cosines = torch.where((norms[0] == 0) != (norms[1] == 0), 0.0, cosines)
                self.total[layer] += torch.where((norms[0] == 0) & (norms[1] == 0), 1.0, cosines).sum()
        self.count += y[0].numel() // max(1, y.shape[-1])
