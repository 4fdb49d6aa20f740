"""Sparse replacement attention (Lorsa, He et al. 2025) for Vision Transformers: sparse units of rank one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from clt_lightning.core.arguments import whole
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.activations import Activation, TopK
from clt_lightning.transcoder.card import Upload, units_card
from clt_lightning.transcoder.codes import Codes
from clt_lightning.transcoder.normalization import ActivationStatistics, input_scales, output_scales
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.precision import full_precision
from clt_lightning.transcoder.saving import Saving


@dataclass(frozen=True)
class AttentionOutput:
    """What units, or an autoencoder, make of a batch of images.

    Attributes:
        y_hat: `(layers, images, positions, d_model)`: the rebuilt `attn_out`.
        codes: `(layers, images * positions, F)`, image-major: what each unit writes at each query position.
        pre: one `(images * positions, F)` per layer: pre-activations, differentiable; of an autoencoder none.
        z_hat: `(layers, images, positions, width)`: the rebuilt `attn_z`, of an autoencoder of the heads' outputs.
    """

    y_hat: Tensor
    codes: Codes
    pre: list[Tensor]
    z_hat: Tensor | None = None


class SparseAttention(Saving):
    """F units per layer in the place of its attention, over all positions of an image in both directions.

    A unit reads one direction of the normed stream at the key positions, moves it by the pattern of one head, and
    writes one vector at the query position, if it is among the active ones there:

        pre[q, f] = sum_k A[h(f)][q, k] <W_enc[f], x[k]> + b_enc[f],   y[q] = sum_f act(pre)[q, f] W_dec[f] + b_dec

    Heads own equal blocks of units, in their order: unit f belongs to head `f // (F / n_heads)`. With the model's own
    patterns (the default) a pre-activation is linear in the normed stream once the patterns are held, and splits
    exactly over key positions (`key_terms`). `d_qk` gives the units patterns of their own instead.

    Args:
        n_layers: attention layers of the backbone.
        d_model: width of the stream.
        n_features: F, units of a layer: a multiple of `n_heads`.
        n_heads: heads whose patterns there are: the model's; with `d_qk`, as many as wanted.
        activation: which units are active at a query position; None for `TopK(32)`.
        d_qk: size of own queries and keys, trained; None for the model's own patterns, which are then given.
        seed: of the random weights that training starts from; None draws from torch's generator.

    Attributes:
        W_enc, W_dec: `(layers, F, d_model)`; `b_enc`: `(layers, F)`; `b_dec`: `(layers, d_model)`.
        W_q, W_k: `(layers, heads, d_qk, d_model)`, `b_q`, `b_k`: `(layers, heads, d_qk)`; None without `d_qk`.
        x_scale, y_scale: `(layers,)` factors on inputs and outputs, powers of two; 1 in files.

    Raises:
        UserError: sizes that cannot be.
    """

    units = "units"
    x_scale: Tensor
    y_scale: Tensor
    normalized: Tensor

    def __init__(
        self,
        n_layers: int,
        d_model: int,
        n_features: int,
        n_heads: int,
        activation: Activation | None = None,
        d_qk: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.n_layers, self.d_model = whole("n_layers", n_layers, 1), whole("d_model", d_model, 1)
        self.n_features, self.n_heads = whole("n_features", n_features, 1), whole("n_heads", n_heads, 1)
        if self.n_features % self.n_heads:
            near = max(1, round(n_features / n_heads)) * n_heads
            raise UserError(
                f"n_features={n_features}: heads own equal numbers of units, so it must be a multiple of "
                f"n_heads={n_heads}, such as {near}"
            )
        self.d_qk = None if d_qk is None else whole("d_qk", d_qk, 1)
        self.activation = TopK(32) if activation is None else activation
        self.activation.build(self.n_layers, self.n_features)
        generator = None if seed is None else torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> nn.Parameter:
            weights = torch.empty(*shape)
            return nn.Parameter(
                weights if weights.is_meta else F.normalize(weights.normal_(generator=generator), dim=-1)
            )

        L, H, width = self.n_layers, self.n_heads, self.d_model
        self.W_dec = drawn(L, self.n_features, width)
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(L, self.n_features))
        self.b_dec = nn.Parameter(torch.zeros(L, width))
        self.W_q = None if self.d_qk is None else drawn(L, H, self.d_qk, width)
        self.W_k = None if self.d_qk is None else drawn(L, H, self.d_qk, width)
        self.b_q = None if self.d_qk is None else nn.Parameter(torch.zeros(L, H, self.d_qk))
        self.b_k = None if self.d_qk is None else nn.Parameter(torch.zeros(L, H, self.d_qk))
        self.register_buffer("x_scale", torch.ones(L))
        self.register_buffer("y_scale", torch.ones(L))
        self.register_buffer("normalized", torch.zeros((), dtype=torch.bool))

    # -- forwards ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Float[Tensor, "layers images positions d_model"],
        patterns: Sequence[Float[Tensor, "images heads queries keys"]] | None = None,
    ) -> AttentionOutput:
        """All layers, each from the stream that it is given.

        Args:
            x: `(layers, images, positions, d_model)`, `attn_in` of each layer: all positions of every image.
            patterns: the model's, one `(images, n_heads, queries, keys)` per layer; None with `d_qk`.

        Raises:
            UserError: another shape, or patterns that are missing or not wanted.
        """
        if x.ndim != 4 or len(x) != self.n_layers:
            raise UserError(
                f"sparse attention reads (layers, images, positions, d_model) with {self.n_layers} layers and whole "
                f"images, got {tuple(x.shape)}"
            )
        if patterns is not None and len(patterns) != self.n_layers:
            raise UserError(f"sparse attention of {self.n_layers} layers got the patterns of {len(patterns)}")
        rows, codes, pres = [], [], []
        for layer in range(self.n_layers):
            pre = self.pre_activations(layer, x[layer], None if patterns is None else patterns[layer])
            found = self._active(layer, pre)
            rows.append(self.decode(layer, found).view(x.shape[1:]))
            codes.append(found)
            pres.append(pre)
        together = Codes([c.layer(0)[0] for c in codes], [c.layer(0)[1] for c in codes])
        return AttentionOutput(torch.stack(rows), together, pres)

    def replace(
        self,
        layer: int,
        x: Float[Tensor, "images positions d_model"],
        pattern: Float[Tensor, "images heads queries keys"] | None = None,
    ) -> tuple[Float[Tensor, "images positions d_model"], Codes]:
        """What stands in the place of one layer's attention, `(images, positions, d_model)`, and its codes.

        Args:
            layer: which.
            x: `(images, positions, d_model)`, its `attn_in`.
            pattern: `(images, n_heads, queries, keys)`; None with `d_qk`.
        """
        codes = self._active(layer, self.pre_activations(layer, x, pattern))
        return self.decode(layer, codes).view(x.shape), codes

    def encode(
        self,
        layer: int,
        x: Float[Tensor, "images positions d_model"],
        pattern: Float[Tensor, "images heads queries keys"] | None = None,
    ) -> Codes:
        """Codes of one layer, `(1, images * positions, F)`; arguments as of `replace`."""
        return self._active(layer, self.pre_activations(layer, x, pattern))

    def pre_activations(
        self,
        layer: int,
        x: Float[Tensor, "images positions d_model"],
        pattern: Float[Tensor, "images heads queries keys"] | None = None,
    ) -> Float[Tensor, "tokens features"]:
        """`(images * positions, F)`: of all units of a layer at every query position; arguments as of `replace`."""
        pattern = self._pattern_of(layer, x, pattern)
        with full_precision(x.device.type):
            read = F.linear(x.to(self.W_enc.dtype) * self.x_scale[layer], self.W_enc[layer])
            by_head = read.unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            moved = (pattern.to(read.dtype) @ by_head).transpose(1, 2).flatten(2)
            pre: Tensor = (moved + self.b_enc[layer]).flatten(0, 1)
            return pre

    def decode(self, layer: int, codes: Codes) -> Float[Tensor, "tokens d_model"]:
        """`(tokens, d_model)`: what codes `(1, tokens, F)` of one layer write, the bias included."""
        pairs, values = codes.layer(0)
        weights = self.W_dec[layer]
        with full_precision(weights.device.type):
            if pairs.features.numel():
                values = values.to(weights.dtype)
                y = F.embedding_bag(pairs.features, weights, pairs.offsets[:-1], mode="sum", per_sample_weights=values)
            else:
                y = weights.new_zeros(pairs.n_tokens, self.d_model)
            return (y + self.b_dec[layer]) * self.y_scale[layer]

    def bias(self, layer: int) -> Float[Tensor, " d_model"]:
        """`b_dec` of a layer, `(d_model,)`, in the backbone's units."""
        return self.b_dec[layer] * self.y_scale[layer]

    def pattern(
        self, layer: int, x: Float[Tensor, "images positions d_model"]
    ) -> Float[Tensor, "images heads queries keys"]:
        """`(images, n_heads, queries, keys)`: the units' own patterns, from `x (images, positions, d_model)`.

        Raises:
            UserError: the units have none: they take the model's.
        """
        if self.W_q is None or self.W_k is None or self.b_q is None or self.b_k is None or self.d_qk is None:
            raise UserError("these units move by the model's own patterns (d_qk is None): give its pattern")
        with full_precision(x.device.type):
            wide = x.to(self.W_q.dtype)[:, None]
            q = wide @ self.W_q[layer].transpose(1, 2) + self.b_q[layer][:, None]
            k = wide @ self.W_k[layer].transpose(1, 2) + self.b_k[layer][:, None]
            return torch.softmax(q @ k.transpose(2, 3) * self.d_qk**-0.5, -1)

    # -- what is exact -----------------------------------------------------------------------------------------------

    @property
    def head_of(self) -> Int[Tensor, " features"]:
        """`(F,)` int64: the head by whose pattern each unit moves."""
        each = self.n_features // self.n_heads
        return torch.arange(self.n_heads, device=self.W_enc.device).repeat_interleave(each)

    def key_terms(
        self,
        layer: int,
        x: Float[Tensor, "images positions d_model"],
        images: Int[Tensor, " n"],
        queries: Int[Tensor, " n"],
        units: Int[Tensor, " n"],
        pattern: Float[Tensor, "images heads positions keys"] | None = None,
    ) -> Float[Tensor, "n keys"]:
        """Units' pre-activations split over the key positions that they are read from: exact, patterns being held.

        Args:
            layer: which.
            x: `(images, positions, d_model)`, its `attn_in`.
            images, queries, units: `(n,)` int64: which units, where.
            pattern: `(images, n_heads, queries, keys)`; None with `d_qk`.

        Returns:
            `(n, keys)`; with `b_enc` each row sums to the unit's pre-activation, and a positive one times
            `writes(layer, units)` is what the unit writes.
        """
        pattern = self._pattern_of(layer, x, pattern).to(self.W_enc.dtype)
        read = torch.einsum("nkd,nd->nk", x.to(self.W_enc.dtype)[images], self.W_enc[layer][units])
        return pattern[images, self.head_of[units], queries] * read * self.x_scale[layer]

    def readers(self, layer: int, units: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """`(n, d_model)`: what units read of the normed stream at the keys."""
        return self.W_enc[layer][units] * self.x_scale[layer]

    def writes(self, layer: int, units: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """`(n, d_model)`: what code 1 of units writes."""
        return self.W_dec[layer][units] * self.y_scale[layer]

    # -- before and between training steps ---------------------------------------------------------------------------

    @torch.no_grad()
    def normalize(self, statistics: ActivationStatistics) -> None:
        """Sets the scales; of new units the decoders' biases to the mean outputs. Trained ones make what they made."""
        x_before, y_before = self.x_scale.clone(), self.y_scale.clone()
        self.x_scale.copy_(input_scales(statistics))
        self.y_scale.copy_(output_scales(statistics))
        if bool(self.normalized):
            self.W_enc.mul_((x_before / self.x_scale)[:, None, None])
            self.W_dec.mul_((y_before / self.y_scale)[:, None, None])
            self.b_dec.mul_((y_before / self.y_scale)[:, None])
        else:
            self.b_dec.copy_(statistics.y_mean.to(self.b_dec) / self.y_scale[:, None])
        self.normalized.fill_(True)

    @torch.no_grad()
    def hold_decoders(self, norms: Float[Tensor, "layers features"]) -> None:
        """Scales every unit's written vector back to a norm, `(layers, F)`."""
        self.W_dec.copy_(F.normalize(self.W_dec, dim=-1) * norms[..., None])

    # -- files -------------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Plain arguments that build untrained units of the same form."""
        return {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_features": self.n_features,
            "n_heads": self.n_heads,
            "activation": self.activation.config(),
            "d_qk": self.d_qk,
        }

    def folded_state(self) -> dict[str, Tensor]:
        """The tensors to write: scales folded into the weights."""
        state = dict(self.state_dict())
        x_scale, y_scale = self.x_scale[:, None], self.y_scale[:, None]
        state["W_enc"] = self.W_enc * x_scale[..., None]
        state["W_dec"], state["b_dec"] = self.W_dec * y_scale[..., None], self.b_dec * y_scale
        state["x_scale"], state["y_scale"] = torch.ones_like(self.x_scale), torch.ones_like(self.y_scale)
        state["normalized"] = torch.ones_like(self.normalized)
        return state

    def card(self, upload: Upload) -> str:
        return units_card(self.config(), self.n_parameters, upload)

    def extra_repr(self) -> str:
        qk = "the model's patterns" if self.d_qk is None else f"d_qk={self.d_qk}"
        return f"{self.n_layers} layers, d_model={self.d_model}, F={self.n_features}, {self.n_heads} heads, {qk}"

    # -- inside ------------------------------------------------------------------------------------------------------

    def _pattern_of(self, layer: int, x: Tensor, pattern: Tensor | None) -> Tensor:
        if x.ndim != 3 or x.shape[2] != self.d_model:
            raise UserError(
                f"sparse attention reads (images, positions, d_model={self.d_model}), all positions of whole images; "
                f"got {tuple(x.shape)}"
            )
        if self.d_qk is not None:
            if pattern is not None:
                raise UserError(f"these units have patterns of their own (d_qk={self.d_qk}): give none")
            return self.pattern(layer, x)
        expected = (x.shape[0], self.n_heads, x.shape[1], x.shape[1])
        got = None if pattern is None else tuple(pattern.shape)
        if pattern is None or got != expected:
            raise UserError(
                f"layer {layer}: these units move by the model's patterns, (images, n_heads, queries, keys) = "
                f"{expected}, got {got}"
            )
        return pattern

    def _active(self, layer: int, pre: Tensor) -> Codes:
        selected = self.activation.select(pre.detach(), layer)
        pairs = selected if isinstance(selected, Pairs) else Pairs.from_mask(selected)
        return Codes([pairs], [self.activation.values(pairs.entries(pre), pairs.features, layer)])
