"""Where the units of sparse attention start: at what the model's own heads write, and read to write it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.backbone.attention_parts import AttentionParts, attention_pattern
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
        attention.start_from(layer, torch.cat(reads), torch.cat(writes), torch.cat(centres))
        if attention.d_qk is not None:
            _start_queries(attention, layer, parts)
        y = found[0]["attn_out"][0].float()
        pattern = None if attention.d_qk is not None else attention_pattern(parts, x[: len(images[0])])
        attention.fit_size(layer, x[: len(images[0])], y, pattern)


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
    attention.start_queries(layer, both[0][own], both[1][own], scale)
