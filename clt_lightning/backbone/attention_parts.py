"""A block's attention as plain tensors, whatever library it comes from, and the pattern that it makes of its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import RmsNorm  # type: ignore[attr-defined]
from torch import Tensor, nn

from clt_lightning.core.errors import UserError

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
        qkv: `(3 width, d_model)`: queries, keys and values, each head-major.
        out: `(d_model, width)` from the concatenated heads.
        n_heads: heads; `width / n_heads` channels each.
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


def norm_parts(name: str, module: nn.Module) -> Norm | None:
    """A LayerNorm's or RMSNorm's numbers; None for an identity.

    Args:
        name: of the backbone, for messages.
        module: the norm.

    Raises:
        UserError: another kind of norm.
    """
    found: Any = module
    if isinstance(module, nn.Identity):
        return None
    if isinstance(module, nn.LayerNorm):
        return Norm(found.weight, found.bias, found.eps)
    if isinstance(module, RmsNorm):
        return Norm(found.weight, None, found.eps, centred=False)
    raise UserError(
        f"'{name}' has a norm of class {type(module).__name__}: LayerNorm and RMSNorm are known, this is not supported"
    )


def linear_parts(module: nn.Linear) -> Linear:
    """A linear layer's numbers."""
    return Linear(module.weight, module.bias)


def stacked(projections: list[nn.Linear]) -> Linear:
    """Queries, keys and values of three linear layers as one."""
    biases: list[Tensor] = [torch.zeros_like(p.weight[:, 0]) if p.bias is None else p.bias for p in projections]
    weights: list[Tensor] = [p.weight for p in projections]
    return Linear(torch.cat(weights), torch.cat(biases))


def queries_and_keys(part: AttentionParts, normed: Tensor) -> tuple[Tensor, Tensor]:
    """`(images, heads, positions, channels)` each, as the scores read them, from the normed stream."""
    q, k = _split(part, normed)[:2]
    q = q if part.q_norm is None else part.q_norm(q)
    k = k if part.k_norm is None else part.k_norm(k)
    return (q, k) if part.rope is None else (part.rope(q), part.rope(k))


def score_scale(part: AttentionParts, channels: int) -> float:
    """The factor on `<query, key>`."""
    return channels**-0.5 if part.scale is None else part.scale


def attention_pattern(part: AttentionParts, normed: Tensor) -> Tensor:
    """`(images, heads, queries, keys)`: what each position looks at."""
    q, k = queries_and_keys(part, normed)
    return torch.softmax(q @ k.transpose(-1, -2) * score_scale(part, q.shape[-1]), -1)


def values(part: AttentionParts, normed: Tensor) -> Tensor:
    """`(images, heads, positions, channels)`."""
    return _split(part, normed)[2]


def first_attends(part: AttentionParts, normed: Tensor) -> Tensor:
    """`(images, 1, d_model)`: what attention makes of the first position, a prefix token; no other's query is made.

    Args:
        part: of the attention.
        normed: `(images, positions, d_model)` what it reads.
    """
    width = len(part.qkv.weight) // 3
    bias = (None, None) if part.qkv.bias is None else part.qkv.bias.split([width, 2 * width])
    query, both = part.qkv.weight.split([width, 2 * width])
    q = F.linear(normed[:, :1], query, bias[0]).unflatten(-1, (part.n_heads, -1)).transpose(1, 2)
    k, v = F.linear(normed, both, bias[1]).unflatten(-1, (2, part.n_heads, -1)).permute(2, 0, 3, 1, 4)
    q = q if part.q_norm is None else part.q_norm(q)
    k = k if part.k_norm is None else part.k_norm(k)
    k = k if part.rope is None else part.rope(k)  # prefix tokens, as the query's, are not turned
    mixed = F.scaled_dot_product_attention(q, k, v, scale=part.scale)
    if part.head_scale is not None:
        mixed = mixed * part.head_scale[:, None, None]
    joined = mixed.transpose(1, 2).flatten(2)
    return part.out(joined if part.inner_norm is None else part.inner_norm(joined))


def _split(part: AttentionParts, normed: Tensor) -> Tensor:
    result: Tensor = part.qkv(normed).unflatten(-1, (3, part.n_heads, -1)).permute(2, 0, 3, 1, 4)
    return result
