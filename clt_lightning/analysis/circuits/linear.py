"""The linear model of an image: its own forward with attention patterns, norm scales and gates held at their values.

What is held makes every block affine in the residual stream, so that a stream, an encoder's pre-activation or a logit
is a sum over what was written before it. `forward.see` runs the tower and keeps what is held; `LinearTower` is the
affine map and its transpose. The forward of the held tower is the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis.circuits.forward import Held, Seen, mixed, normed_by, scaled
from clt_lightning.analysis.circuits.parts import BlockParts, TowerParts
from clt_lightning.backbone.attention_parts import values

Rules = Literal["transcoder", "libragrad"]


class LinearBlock:
    """One block with everything held: affine maps and their transposes.

    Args:
        part: the block.
        held: of one image, or of as many as there are rows.
    """

    def __init__(self, part: BlockParts, held: Held) -> None:
        self.part, self.held = part, held
        d = part.attention.qkv.weight.shape[1]
        self._value_weight = part.attention.qkv.weight[2 * d :]

    def attend(self, stream: Tensor) -> Tensor:
        """What the attention adds, `(rows, positions, d_model)`, constants included."""
        out = self.part.attention.out(self.heads(stream))
        if self.part.post_attention is not None:
            out = self.part.post_attention(out, self.held.post)
        return scaled(out, self.part.scale_1)

    def heads(self, stream: Tensor) -> Tensor:
        """What the attention's output projection reads, `(rows, positions, width)`, constants included."""
        attention, held = self.part.attention, self.held
        value = values(attention, self.part.norm_1(stream, held.norm_1))
        return normed_by(attention.inner_norm, mixed(attention, value, held.pattern), held.inner)

    def read_heads_adjoint(self, gradient: Tensor) -> Tensor:
        """From the gradient by what the output projection reads to that by the stream at the block's entry."""
        by_normed = self._from_heads(self._past_inner_norm(gradient))
        return self.part.norm_1.adjoint(by_normed, self.held.norm_1)

    def attend_adjoint(self, gradient: Tensor, heads: Tensor | None = None) -> Tensor:
        """From the gradient by what the attention adds to that by the stream at the block's entry.

        Args:
            gradient: `(rows, positions, d_model)`.
            heads: `(rows, heads)` weights of the heads' paths; None for all of them.
        """
        return self.part.norm_1.adjoint(self.values_adjoint(gradient, heads), self.held.norm_1)

    def values_adjoint(self, gradient: Tensor, heads: Tensor | None = None) -> Tensor:
        """As `attend_adjoint`, up to the output of the norm before the attention."""
        z = self.heads_adjoint(gradient)
        return self._from_heads(z if heads is None else z * heads[:, :, None, None])

    def _from_heads(self, z: Tensor) -> Tensor:
        pattern = self.held.pattern
        if len(pattern) == 1:  # one image, many rows: one product per head
            back = torch.einsum("hqk,rhqc->rkhc", pattern[0], z)
        else:
            back = (pattern.transpose(-1, -2) @ z).transpose(1, 2)
        return back.flatten(2) @ self._value_weight

    def heads_adjoint(self, gradient: Tensor) -> Tensor:
        """From the gradient by what the attention adds to that by each head's mixed values.

        Returns:
            `(rows, heads, positions, channels)`.
        """
        attention = self.part.attention
        gradient = scaled(gradient, self.part.scale_1)
        if self.part.post_attention is not None:
            assert self.held.post is not None
            gradient = self.part.post_attention.adjoint(gradient, self.held.post)
        return self._past_inner_norm(attention.out.adjoint(gradient))

    def _past_inner_norm(self, gradient: Tensor) -> Tensor:
        attention = self.part.attention
        if attention.inner_norm is not None:
            assert self.held.inner is not None
            gradient = attention.inner_norm.adjoint(gradient, self.held.inner)
        z = gradient.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
        result: Tensor = z if attention.head_scale is None else z * attention.head_scale[:, None, None]
        return result

    def read(self, middle: Tensor) -> Tensor:
        """The MLP's input from the stream before its norm."""
        return self.part.norm_2(middle, self.held.norm_2)

    def read_adjoint(self, gradient: Tensor) -> Tensor:
        """The transpose of `read`."""
        return self.part.norm_2.adjoint(gradient, self.held.norm_2)

    def mlp(self, x: Tensor) -> Tensor:
        """What the MLP adds, its gates held."""
        mlp = self.part.mlp
        active = mlp.up(x) * self.held.gate
        return scaled(mlp.down(normed_by(mlp.norm, active, self.held.mlp)), self.part.scale_2)

    def mlp_adjoint(self, gradient: Tensor) -> Tensor:
        """The transpose of `mlp`."""
        mlp = self.part.mlp
        gradient = mlp.down.adjoint(scaled(gradient, self.part.scale_2))
        if mlp.norm is not None:
            assert self.held.mlp is not None
            gradient = mlp.norm.adjoint(gradient, self.held.mlp)
        return mlp.up.adjoint(gradient * self.held.gate)


@dataclass(frozen=True)
class Step:
    """A place that a backward passes, with the gradient of every row by what is added to the stream there.

    Attributes:
        layer: the block; -1 at the entry of block 0.
        place: `mlp` (what the MLP, or what stands in its place, adds), `attention` (what the attention adds), `input`.
        gradient: `(rows, positions, d_model)`; not to be changed.
    """

    layer: int
    place: Literal["mlp", "attention", "input"]
    gradient: Tensor


class LinearTower:
    """The tower with everything held, as one affine map.

    Args:
        parts: the tower, in the type to compute in.
        seen: one image's forward (any number of rows then), or as many images as there will be rows.
        rules: `transcoder`: what the MLPs add is written by other nodes, and the stream passes them by (except
            for `skips`); `libragrad`: the stream goes through the model's own MLPs, their gates held.
        skips: `(d_model, d_model)` of each layer: a linear path from an MLP's input to its output.
        tangent: let backwards differentiate patterns, norms and gates instead of holding them: what a small change does
            (`tangent.py`). Forwards hold them either way.
    """

    def __init__(
        self,
        parts: TowerParts,
        seen: Seen,
        rules: Rules = "transcoder",
        skips: Sequence[Float[Tensor, "d d"]] | None = None,
        tangent: bool = False,
    ) -> None:
        self.parts, self.seen, self.rules, self.skips, self.tangent = parts, seen, rules, skips, tangent
        self.blocks = [LinearBlock(part, held) for part, held in zip(parts.blocks, seen.held)]
        if tangent:
            from clt_lightning.analysis.circuits.tangent import TangentBlock

            places = zip(parts.blocks, seen.held, seen.streams, seen.middles)
            self.blocks = [TangentBlock(*place) for place in places]

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    def constants(self, layer: int) -> tuple[Float[Tensor, "images positions d_model"], Float[Tensor, "... d_model"]]:
        """What a block adds whatever the stream is: by its attention and past its MLP's norm, through skip or MLP.

        Returns:
            `(images, positions, d_model)` and a tensor that broadcasts to it.
        """
        block = self.blocks[layer]
        nothing = torch.zeros_like(self.seen.streams[0])
        return block.attend(nothing), self.past_mlp(layer, block.read(nothing))

    def past_mlp(
        self, layer: int, x: Float[Tensor, "rows positions d_model"]
    ) -> Float[Tensor, "rows positions d_model"]:
        """What goes linearly from an MLP's input to its output: nothing, the skip, or the MLP with its gates held."""
        if self.rules == "libragrad":
            return self.blocks[layer].mlp(x)
        return x @ self.skips[layer].T if self.skips is not None else torch.zeros_like(x)

    def past_mlp_adjoint(
        self, layer: int, gradient: Float[Tensor, "rows positions d_model"]
    ) -> Float[Tensor, "rows positions d_model"] | None:
        """The transpose of its linear part; None where nothing passes."""
        if self.rules == "libragrad":
            return self.blocks[layer].mlp_adjoint(gradient)
        return gradient @ self.skips[layer] if self.skips is not None else None

    def forward(
        self,
        stream: Float[Tensor, "rows positions d_model"],
        written: Callable[[int, Float[Tensor, "rows positions d_model"]], Float[Tensor, "rows positions d_model"]],
    ) -> Float[Tensor, "rows positions d_model"]:
        """The last stream, from another one at the entry of block 0 and other things written by the MLPs.

        Args:
            stream: `(rows, positions, d_model)`.
            written: `written(layer, x)` is what is added in the place of a block's MLP output.
        """
        for layer, block in enumerate(self.blocks):
            middle = stream + block.attend(stream)
            stream = middle + written(layer, block.read(middle))
        return stream

    def pull(
        self,
        top: int,
        rows: int,
        read: Callable[[int], Float[Tensor, "rows positions d_model"] | None] | None = None,
        final: Float[Tensor, "... d_model"] | None = None,
        entering: Callable[[int], Float[Tensor, "rows positions d_model"] | None] | None = None,
        attending: Callable[[int], Float[Tensor, "rows positions d_model"] | None] | None = None,
    ) -> Iterator[Step]:
        """Backwards through the held tower, many rows at once.

        Args:
            top: the layer to begin at; what is read lies at this layer or below.
            rows: how many.
            read: `read(layer)`: gradients by the MLP's input of a layer, `(rows, positions, d_model)`, or None. Rows
                that begin at lower layers may come last and be left out: nothing is computed for them above.
            final: gradients by the last stream (`top` is the last layer then).
            entering: `entering(layer)`: gradients by the stream at a block's entry.
            attending: `attending(layer)`: gradients by what the attention adds, where that is written by nodes of its
                own: these alone go on through the attention then, and the stream passes it by.

        Yields:
            every place from the top down: `mlp` and `attention` of each block, at last `input`; with the rows that have
            begun.
        """
        shape = self.seen.streams[0].shape[1:]
        gradient = None if final is None else final.expand(rows, *shape)
        for layer in range(top, -1, -1):
            block = self.blocks[layer]
            by_x = None
            if gradient is not None:
                yield Step(layer, "mlp", gradient)
                by_x = self.past_mlp_adjoint(layer, gradient)
            by_x = _plus(by_x, None if read is None else read(layer))
            if by_x is not None:
                gradient = _plus(gradient, block.read_adjoint(by_x))
            if gradient is not None:
                yield Step(layer, "attention", gradient)
            through = gradient if attending is None else attending(layer)
            if through is not None:
                gradient = _plus(gradient, block.attend_adjoint(through))
            gradient = _plus(gradient, None if entering is None else entering(layer))
        if gradient is None:
            gradient = self.seen.streams[0].new_zeros(1, 1, 1).expand(rows, *shape)
        yield Step(-1, "input", gradient)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum; rows that one of them does not have yet are 0 there."""
    if a is None or b is None:
        return b if a is None else a
    if len(a) != len(b):
        a, b = (a, b) if len(a) > len(b) else (b, a)
        return torch.cat([a[: len(b)] + b, a[len(b) :]])
    return a + b
