"""The scales of x and y, the biases that they come with, and everything in a reconstruction that is no feature's."""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.decoders import SparseDecoders
from clt_lightning.transcoder.normalization import ActivationStatistics, input_scales, output_scales, standardise

Normalize = Literal["layer", "token"]


class ScaledDecoders(SparseDecoders):
    """Encoders and decoders whose inputs and outputs are scaled, per layer or per token.

    Attributes:
        normalization: `layer` or `token`.
        W_skip: one `(d_out, d_model)` per layer, or None.
        x_scale, y_scale: `(layers,)`; `y_mean (layers, d_out)` and `y_var (layers,)` of the training data.
        normalized: whether they were set.
    """

    normalization: Normalize
    W_skip: nn.ParameterList | None
    x_scale: Tensor
    y_mean: Tensor
    y_var: Tensor
    normalized: Tensor

    @torch.no_grad()
    def normalize(self, statistics: ActivationStatistics) -> None:
        """Sets scales and biases of a fresh transcoder from data, so that the first reconstruction is the mean.

        Args:
            statistics: moments of x and y.

        Raises:
            UserError: the transcoder is normalised already (it would change what the weights mean).
        """
        if bool(self.normalized):
            raise UserError("this transcoder is normalised already; normalising again would change its function")
        if statistics.y_mean.shape != self.y_mean.shape:
            raise UserError(
                f"statistics are of shape {tuple(statistics.y_mean.shape)}, expected {tuple(self.y_mean.shape)}"
            )
        self.x_scale.copy_(input_scales(statistics))
        self.y_scale.copy_(output_scales(statistics))
        self.y_mean.copy_(statistics.y_mean)
        # a constant layer has nothing to explain; 1 keeps its loss term at 0 instead of 0 / 0
        self.y_var.copy_(torch.where(statistics.y_var > 0, statistics.y_var, torch.ones_like(statistics.y_var)))
        self.b_dec.copy_(statistics.y_mean.to(self.b_dec) / self.y_scale[:, None])
        for layer, W in enumerate(self.W_enc):
            centre = statistics.x_mean[layer].to(W) * self.x_scale[layer]
            self.b_enc[layer] -= W @ centre
        self.normalized.fill_(True)

    def standardised(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """What the encoders read of x `(..., d_model)`: each token's standard form, or x itself (`normalize`)."""
        return standardise(x.to(self.b_dec.dtype))[0] if self.normalization == "token" else x

    def in_units(
        self, terms: Float[Tensor, "*sources tokens d_out"], x: Float[Tensor, "tokens d_in"]
    ) -> Float[Tensor, "*sources tokens d_out"]:
        """Terms of `layer_terms`, `(sources, tokens, d_out)`, in the backbone's units at the tokens x."""
        return terms * standardise(x)[2] if self.normalization == "token" else terms

    def rest_term(self, x: Float[Tensor, "tokens d_in"], layer: int) -> Float[Tensor, "tokens d_out"]:
        """What is no feature's: bias, linear skip, the token's own mean; `(tokens, d_out)` from x `(tokens, d_model)`.

        With `in_units(layer_terms(...), x)` it adds up to the reconstruction.
        """
        if self.normalization == "token":
            _, mean, std = standardise(x)
            return self.bias(layer) * std + mean
        return self.bias(layer) + self.skip_term(x, layer)

    @torch.no_grad()
    def folded_state(self) -> dict[str, Tensor]:
        """`state_dict` with the scales folded into the weights, contiguous; one copy of each tensor that changes.

        The function stays the same, the codes to the last bit: scales are powers of two.
        """
        state = dict(self.state_dict())
        for layer in range(self.n_layers):
            targets = self.y_scale[layer : layer + self.n_targets(layer)]
            state[f"W_enc.{layer}"] = self.W_enc[layer] * self.x_scale[layer]
            state[f"W_dec.{layer}"] = torch.mul(
                self.W_dec[layer], targets[None, :, None], out=self.W_dec[layer].new_empty(self.W_dec[layer].shape)
            )
            if self.W_skip is not None:
                state[f"W_skip.{layer}"] = self.W_skip[layer] * (self.x_scale[layer] * self.y_scale[layer])
        state["b_dec"] = self.b_dec * self.y_scale[:, None]
        state["x_scale"], state["y_scale"] = torch.ones_like(self.x_scale), torch.ones_like(self.y_scale)
        return state

    def fold_(self) -> Self:
        """Folds the scales into the weights, in place."""
        self.load_state_dict(self.folded_state())
        return self

    def skip_term(self, x: Float[Tensor, "tokens d_in"], layer: int) -> Float[Tensor, "tokens d_out"]:
        """What the linear path adds to layer `layer`: `(tokens, d_model)` from x `(tokens, d_model)`; 0 without it."""
        if self.W_skip is None:
            return self.b_dec.new_zeros(*x.shape[:-1], self.d_out)
        scaled = x.to(self.b_dec.dtype) * self.x_scale[layer]
        return F.linear(scaled, self.W_skip[layer]) * self.y_scale[layer]

    def linear_part(self, x: Float[Tensor, "layers tokens d_in"]) -> Float[Tensor, "layers tokens d_out"]:
        """What is not sparse: linear skip and decoder bias, `(layers, tokens, d_model)` from x of that shape."""
        return torch.stack([self.rest_term(x[layer], layer) for layer in range(self.n_layers)])

    def _scale_inputs(self, x: Tensor) -> Tensor:
        return x.to(self.b_dec.dtype) * self.x_scale[:, None, None]
