"""Where the units of sparse attention start: at what the model's own heads write, and read to write it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.backbone.attention_parts import AttentionParts, attention_pattern
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.attention import SparseAttention


@torch.no_grad()
def start_units(clip: Backbone, attention: SparseAttention, images: Sequence[Tensor], seed: int) -> None:
    """Starts every unit of a head at something that the head wrote in these images.

    A unit writes the direction of one of the head's outputs, less their mean, and reads by the head's own matrices
    what that direction of the output is made of; codes are then made smaller, since units overlap. With another number
    of heads than the model's (own queries and keys), unit heads take the model's in turn.

    Args:
        clip: the backbone.
        attention: the units, normalised.
        images: batches of `(images, 3, size, size)`, on the backbone's device.
        seed: of the choice of outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    each = attention.n_features // attention.n_heads
    for layer in range(clip.n_layers):
        parts, scale = clip.attention_parts(layer), clip.family.branch_scale(layer, 1)
        # a layer at a time: all of a large model's would not fit
        found = [clip.read(batch, ("attn_in", "attn_z", "attn_out"), [layer]) for batch in images]
        x = torch.cat([f["attn_in"][0] for f in found]).unflatten(0, (-1, clip.n_positions))
        z = torch.cat([f["attn_z"][0] for f in found])
        centre = _mean_read(parts, x)
        reads, writes, centres = [], [], []
        for head in range(attention.n_heads):
            own = head % parts.n_heads
            writer, value = head_matrices(parts, scale, own)
            outputs = z.unflatten(1, (parts.n_heads, -1))[:, own].float()
            chosen = torch.randint(len(outputs), (each,), generator=generator).to(outputs.device)
            rows = F.normalize((outputs[chosen] - outputs.mean(0)) @ writer.T, dim=1)
            blank = rows.norm(dim=1) < 0.5  # a head that writes the same everywhere
            rows[blank] = F.normalize(torch.randn(each, rows.shape[1], generator=generator), dim=1).to(rows)[blank]
            reads.append(rows @ writer @ value)
            writes.append(rows)
            centres.append(reads[-1] @ centre[own])
        start_from(attention, layer, torch.cat(reads), torch.cat(writes), torch.cat(centres))
        if attention.d_qk is not None:
            _start_queries(attention, layer, parts)
        y = found[0]["attn_out"][0].float()
        pattern = None if attention.d_qk is not None else attention_pattern(parts, x[: len(images[0])])
        fit_size(attention, layer, x[: len(images[0])], y, pattern)


def head_matrices(parts: AttentionParts, scale: Tensor | None, head: int) -> tuple[Tensor, Tensor]:
    """One head's output and value matrices, `(d_model, channels)` and `(channels, d_model)`, in float32.

    Args:
        parts: of the layer.
        scale: the LayerScale behind it; None for none.
        head: which.
    """
    writer = parts.out.weight.float().unflatten(1, (parts.n_heads, -1))[:, head]
    value = parts.qkv.weight.float().unflatten(0, (3, parts.n_heads, -1))[2, head]
    if parts.head_scale is not None:
        value = value * parts.head_scale[head].float()
    return writer if scale is None else writer * scale.float()[:, None], value


def _mean_read(parts: AttentionParts, x: Tensor, batch: int = 64) -> Tensor:
    """`(heads, d_model)`: what each head's pattern gathers of the normed stream, on average."""
    total = x.new_zeros(parts.n_heads, x.shape[2], dtype=torch.float32)
    for some in x.split(batch):
        weights = attention_pattern(parts, some).sum(2).float()
        total += torch.einsum("nhk,nkd->hd", weights, some.float())
    return total / (x.shape[0] * x.shape[1])


def _start_queries(attention: SparseAttention, layer: int, parts: AttentionParts) -> None:
    """Own queries and keys from the model's matrices; norms and rotations of queries and keys are left out."""
    weight = parts.qkv.weight.float().unflatten(0, (3, parts.n_heads, -1))[:2]
    bias = torch.zeros_like(weight[..., 0])
    if parts.qkv.bias is not None:
        bias = parts.qkv.bias.float().unflatten(0, (3, parts.n_heads, -1))[:2]
    both = torch.cat([weight, bias[..., None]], -1)
    own = torch.arange(attention.n_heads, device=both.device) % parts.n_heads
    scale = both.shape[2] ** -0.5 if parts.scale is None else parts.scale
    start_queries(attention, layer, both[0][own], both[1][own], scale)


@torch.no_grad()
def start_from(
    units: SparseAttention,
    layer: int,
    reads: Float[Tensor, "features d_model"],
    writes: Float[Tensor, "features d_model"],
    centre: Float[Tensor, " features"],
) -> None:
    """Starts a layer's units at given directions, in the model's units.

    Args:
        units: the units.
        layer: which.
        reads: `(F, d_model)` what code 1 reads of the normed stream.
        writes: `(F, d_model)` what code 1 writes, of norm 1.
        centre: `(F,)` the mean of what is read, which then gives code 0.
    """
    units.W_enc[layer].copy_(reads / (units.x_scale[layer] * units.y_scale[layer]))
    units.W_dec[layer].copy_(writes)
    units.b_enc[layer].copy_(-centre / units.y_scale[layer])


@torch.no_grad()
def fit_size(
    units: SparseAttention,
    layer: int,
    x: Float[Tensor, "images positions d_model"],
    y: Float[Tensor, "tokens d_model"],
    pattern: Float[Tensor, "images heads queries keys"] | None = None,
) -> None:
    """Multiplies a layer's codes by the factor that rebuilds some outputs best.

    Args:
        units: the units.
        layer: which.
        x: `(images, positions, d_model)`, its `attn_in`.
        y: `(images * positions, d_model)`, its `attn_out`.
        pattern: as of `replace`.
    """
    with units.activation.not_tracking():
        made = units.decode(layer, units.encode(layer, x, pattern)) - units.bias(layer)
    wanted = y.to(made) - units.bias(layer)
    factor = (made * wanted).sum() / made.square().sum().clamp(min=1e-30)
    if factor > 0:
        units.W_enc[layer] *= factor
        units.b_enc[layer] *= factor


@torch.no_grad()
def start_queries(
    units: SparseAttention,
    layer: int,
    q: Float[Tensor, "heads channels d_and_1"],
    k: Float[Tensor, "heads channels d_and_1"],
    scale: float,
) -> None:
    """Starts own queries and keys at the best of their size for the model's scores.

    Args:
        units: the units.
        layer: which.
        q, k: `(n_heads, channels, d_model + 1)`: the model's, biases in the last column.
        scale: the model's factor on its scores.
    """
    if units.W_q is None or units.W_k is None or units.b_q is None or units.b_k is None or units.d_qk is None:
        raise UserError("these units move by the model's own patterns (d_qk is None): nothing to start")
    left, size, right = torch.linalg.svd(q.transpose(1, 2).double() @ k.double())
    r = min(units.d_qk, q.shape[1])
    half = (size[:, :r] * scale * units.d_qk**0.5).sqrt()[:, None]
    found_q, found_k = (
        (left[:, :, :r] * half).transpose(1, 2),
        (right.transpose(1, 2)[:, :, :r] * half).transpose(1, 2),
    )
    for weights, bias, found in ((units.W_q, units.b_q, found_q), (units.W_k, units.b_k, found_k)):
        weights[layer, :, :r], bias[layer, :, :r] = found[..., :-1].to(weights), found[..., -1].to(bias)
        weights[layer, :, r:], bias[layer, :, r:] = weights[layer, :, r:] * 1e-2, 0.0
