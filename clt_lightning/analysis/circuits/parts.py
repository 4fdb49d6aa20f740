"""What the linear tower needs to know of a Vision Transformer: plain tensors and sizes, whatever library it comes from.

A backbone family gives a `TowerParts` (a method `circuit_parts()` of the backbone, or `open_clip_parts.py`), and
nothing else of it is looked at. Tensors may be of any type and device; `cast` brings all of them to one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

P = TypeVar("P")
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Norm:
    """A LayerNorm or RMSNorm over the last dimension: `centre(x) * scale(x) * weight + bias`.

    Given `scale(x)` it is affine in x; taking the mean off is linear.

    Attributes:
        weight: `(d,)`; None for 1.
        bias: `(d,)`; None for 0.
        eps: added to the mean square.
        centred: whether the mean is taken off first (LayerNorm; an RMSNorm does not).
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    centred: bool = True

    def scale(self, x: Tensor) -> Tensor:
        """`(..., 1)`: one over the standard deviation (or root mean square) of x `(..., d)`."""
        centred = self._centre(x)
        return (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def linear(self, x: Tensor, scale: Tensor) -> Tensor:
        """The part linear in x, given the scale."""
        out = self._centre(x) * scale
        return out if self.weight is None else out * self.weight

    def adjoint(self, gradient: Tensor, scale: Tensor) -> Tensor:
        """The transpose of `linear`: from the gradient by its output to that by x."""
        out = (gradient if self.weight is None else gradient * self.weight) * scale
        return self._centre(out)

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """The norm of x; with a scale given, that one instead of x's own."""
        out = self.linear(x, self.scale(x) if scale is None else scale)
        return out if self.bias is None else out + self.bias

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x


@dataclass(frozen=True)
class Linear:
    """`x @ weight.T + bias`.

    Attributes:
        weight: `(d_out, d_in)`, as `torch.nn.Linear` has it.
        bias: `(d_out,)` or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def linear(self, x: Tensor) -> Tensor:
        """Without the bias."""
        return F.linear(x, self.weight)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """The transpose of `linear`."""
        return gradient @ self.weight


@dataclass(frozen=True)
class AttentionParts:
    """Multi-head self-attention over all positions, without a mask.

    Attributes:
        qkv: `(3 d_model, d_model)`: queries, keys and values, each head-major.
        out: `(d_model, d_model)` from the concatenated heads.
        n_heads: heads; `d_model / n_heads` channels each.
        q_norm: over each head's channels, before the scores; None for none.
        k_norm: the same for keys.
        scale: factor on the scores; None for `1 / sqrt(channels of a head)`.
        head_scale: `(heads,)` factors on the heads' outputs; None for 1.
        inner_norm: over the concatenated heads, before `out`; None for none.
        rope: turns queries (and keys) `(images, heads, positions, channels)` by position, linearly; None for none.
    """

    qkv: Linear
    out: Linear
    n_heads: int
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    scale: float | None = None
    head_scale: Tensor | None = None
    inner_norm: Norm | None = None
    rope: Run | None = None


@dataclass(frozen=True)
class MlpParts:
    """`down(norm(activation(up(x))))`, of one token at a time.

    Attributes:
        up: `(hidden, d_model)`.
        down: `(d_model, hidden)`.
        activation: elementwise; of the form `h * gate(h)` (GELU, QuickGELU, SiLU, ReLU), the gate being `activation(h)
            / h`, which `LibraGrad` holds.
        norm: over the hidden channels; None for none.
    """

    up: Linear
    down: Linear
    activation: Run
    norm: Norm | None = None


@dataclass(frozen=True)
class BlockParts:
    """A pre-norm residual block: attention, then MLP, each with its own norm, and a scale on what it adds.

    Attributes:
        norm_1: before the attention.
        attention: the attention.
        post_attention: a norm on the attention's output; None for none.
        scale_1: `(d_model,)` LayerScale on what the attention adds; None for 1.
        norm_2: before the MLP; its output is the site `mlp_in`.
        mlp: the MLP.
        scale_2: `(d_model,)` LayerScale on what the MLP adds; `scale_2 * mlp(x)` is the site `mlp_out`.
    """

    norm_1: Norm
    attention: AttentionParts
    norm_2: Norm
    mlp: MlpParts
    post_attention: Norm | None = None
    scale_1: Tensor | None = None
    scale_2: Tensor | None = None


@dataclass(frozen=True)
class ReadOutParts:
    """From the last residual stream to the embedding: a norm, a mean over some positions, a projection.

    Attributes:
        norm: the last norm; None for none.
        pool: `(positions,)` weights of the positions, 1 at [CLS] or equal ones over the patches.
        norm_after_pool: whether the norm comes after the pooling; else before it, position by position.
        projection: to the embedding; None for none.
        other: the whole read-out `(images, positions, d_model) -> (images, embed_dim)` where it is no such sum (pooling
            by attention, an MLP): only its tangent is known then. It must run in any floating-point type.
        unit: whether targets read the embedding divided by its norm, as CLIP's cosines do.
    """

    pool: Tensor
    norm: Norm | None = None
    norm_after_pool: bool = False
    projection: Linear | None = None
    other: Run | None = None
    unit: bool = True


@dataclass(frozen=True)
class TowerParts:
    """An image tower.

    Attributes:
        name: the backbone's, for messages.
        embed: preprocessed images `(images, 3, size, size)` to the residual stream at the entry of block 0, in the
            images' own type: patch and position embeddings, prefix tokens, and the norm before the blocks, if any.
        blocks: one a layer.
        read_out: the end.
        n_prefix: [CLS] and registers, which come before the patches.
        grid: patches as (rows, columns).
    """

    name: str
    embed: Run
    blocks: Sequence[BlockParts]
    read_out: ReadOutParts
    n_prefix: int
    grid: tuple[int, int]

    @property
    def n_positions(self) -> int:
        return self.n_prefix + self.grid[0] * self.grid[1]

    def position_names(self) -> list[str]:
        """`CLS`, `reg0`, ..., `r0c0`, ...: a name for every position."""
        prefix = ["CLS", *(f"reg{i}" for i in range(self.n_prefix - 1))][: self.n_prefix]
        return prefix + [f"r{row}c{column}" for row in range(self.grid[0]) for column in range(self.grid[1])]


def cast(part: P, dtype: torch.dtype, device: torch.device | str | None = None) -> P:
    """The same parts with every tensor in one type and on one device; tensors that are there already are shared."""
    if isinstance(part, Tensor):
        return part.detach().to(device=device, dtype=dtype)  # type: ignore[return-value]
    if isinstance(part, list | tuple) and any(is_dataclass(item) for item in part):
        return [cast(item, dtype, device) for item in part]  # type: ignore[return-value]
    if not is_dataclass(part) or isinstance(part, type):
        return part
    changed: dict[str, Any] = {f.name: cast(getattr(part, f.name), dtype, device) for f in fields(part)}
    return replace(part, **changed)
