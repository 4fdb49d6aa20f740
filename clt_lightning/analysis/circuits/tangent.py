"""The tower to first order: attention patterns, norms and gates move with the stream, as they do in the live model.

Its rows do not add up to what they explain (what is left of it is a constant), but they are what a small change does.
It is for predictions; the held tower is for books.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.forward import Held
from clt_lightning.analysis.circuits.linear import LinearBlock
from clt_lightning.analysis.circuits.parts import BlockParts
from clt_lightning.backbone.attention_parts import Norm, score_scale


def norm_adjoint(norm: Norm, gradient: Tensor, x: Tensor) -> Tensor:
    """From the gradient by a norm's output to that by its input x, its scale at work."""
    scale = norm.scale(x)
    unit = (x - x.mean(-1, keepdim=True) if norm.centred else x) * scale
    weighted = gradient if norm.weight is None else gradient * norm.weight
    along = (weighted * unit).mean(-1, keepdim=True)
    # 1 / sqrt(variance + eps): the part along x is held back a little less than all of it
    out = weighted - unit * along
    return (out - out.mean(-1, keepdim=True) if norm.centred else out) * scale


class TangentBlock(LinearBlock):
    """A block's derivative at the image: the transposes of `LinearBlock`, with nothing held.

    Args:
        part: the block.
        held: what was seen of it.
        stream: `(images, positions, d_model)` at its entry.
        middle: before the MLP's norm.
    """

    def __init__(self, part: BlockParts, held: Held, stream: Tensor, middle: Tensor) -> None:
        super().__init__(part, held)
        attention = part.attention
        self._stream, self._middle = stream, middle
        normed = part.norm_1(stream)
        qkv = attention.qkv(normed).unflatten(-1, (3, attention.n_heads, -1)).permute(2, 0, 3, 1, 4)
        self._q_in, self._k_in, self._v = qkv
        self._q = self._q_in if attention.q_norm is None else attention.q_norm(self._q_in)
        self._k = self._k_in if attention.k_norm is None else attention.k_norm(self._k_in)
        if attention.rope is not None:
            self._q, self._k = attention.rope(self._q), attention.rope(self._k)
        self._scale = score_scale(attention, self._q.shape[-1])
        mixed = held.pattern @ self._v
        if attention.head_scale is not None:
            mixed = mixed * attention.head_scale[:, None, None]
        self._mixed = mixed.transpose(1, 2).flatten(2)
        inner = self._mixed if attention.inner_norm is None else attention.inner_norm(self._mixed)
        self._out = attention.out(inner)
        self._hidden = part.mlp.up(part.norm_2(middle))
        with torch.inference_mode(False), torch.enable_grad():
            leaf = self._hidden.detach().clone().requires_grad_()
            (self._slope,) = torch.autograd.grad(part.mlp.activation(leaf).sum(), leaf)

    def attend_adjoint(self, gradient: Tensor, heads: Tensor | None = None) -> Tensor:
        """As `LinearBlock.attend_adjoint`, patterns and norm at work."""
        return norm_adjoint(self.part.norm_1, self.values_adjoint(gradient, heads), self._stream)

    def values_adjoint(self, gradient: Tensor, heads: Tensor | None = None) -> Tensor:
        """As `LinearBlock.values_adjoint`: through values, queries and keys."""
        attention, pattern = self.part.attention, self.held.pattern
        z = self.heads_adjoint(gradient)
        if heads is not None:
            z = z * heads[:, :, None, None]
        by_value = pattern.transpose(-1, -2) @ z
        by_pattern = z @ self._v.transpose(-1, -2)
        by_score = pattern * (by_pattern - (by_pattern * pattern).sum(-1, keepdim=True)) * self._scale
        by_query, by_key = by_score @ self._k, by_score.transpose(-1, -2) @ self._q
        if attention.rope is not None:
            by_query, by_key = (_rope_adjoint(attention.rope, part) for part in (by_query, by_key))
        if attention.q_norm is not None:
            by_query = norm_adjoint(attention.q_norm, by_query, self._q_in)
        if attention.k_norm is not None:
            by_key = norm_adjoint(attention.k_norm, by_key, self._k_in)
        sides = torch.cat([part.transpose(1, 2).flatten(2) for part in (by_query, by_key, by_value)], -1)
        return attention.qkv.adjoint(sides)

    def heads_adjoint(self, gradient: Tensor) -> Tensor:
        """As `LinearBlock.heads_adjoint`, the norms behind the heads at work."""
        attention = self.part.attention
        gradient = gradient if self.part.scale_1 is None else gradient * self.part.scale_1
        if self.part.post_attention is not None:
            gradient = norm_adjoint(self.part.post_attention, gradient, self._out)
        gradient = attention.out.adjoint(gradient)
        if attention.inner_norm is not None:
            gradient = norm_adjoint(attention.inner_norm, gradient, self._mixed)
        z = gradient.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
        result: Tensor = z if attention.head_scale is None else z * attention.head_scale[:, None, None]
        return result

    def read_adjoint(self, gradient: Tensor) -> Tensor:
        """As `LinearBlock.read_adjoint`, the norm at work."""
        return norm_adjoint(self.part.norm_2, gradient, self._middle)

    def mlp_adjoint(self, gradient: Tensor) -> Tensor:
        """As `LinearBlock.mlp_adjoint`, gates and the norm inside at work."""
        mlp = self.part.mlp
        gradient = gradient if self.part.scale_2 is None else gradient * self.part.scale_2
        gradient = mlp.down.adjoint(gradient)
        if mlp.norm is not None:
            gradient = norm_adjoint(mlp.norm, gradient, mlp.activation(self._hidden))
        return mlp.up.adjoint(gradient * self._slope)


def _rope_adjoint(rope: object, gradient: Tensor) -> Tensor:
    """The transpose of a rotation that is known as a function alone."""
    assert callable(rope)
    with torch.inference_mode(False), torch.enable_grad():
        leaf = torch.zeros_like(gradient).requires_grad_()
        (found,) = torch.autograd.grad(rope(leaf), leaf, gradient.detach().clone())
    return found
