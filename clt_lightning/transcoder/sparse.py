"""The sparse path: products that touch active (token, feature) pairs only.

Two autograd functions, `encode_pairs` and `decode_pairs`. Their plain dense counterparts stand in `reference.py`, and
the tests hold one against the other in float64. Weight gradients are built feature by feature as (sparse codes^T) x
(dense gradient): every row is written once, in token order, so results do not depend on the number of threads and no
atomics are needed. On CUDA devices Triton's kernels do the same (`triton_kernels.py`; `dispatch.py` chooses).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from clt_lightning.transcoder.buffers import GradientBuffers
from clt_lightning.transcoder.codes import Pairs
from clt_lightning.transcoder.dispatch import use_triton


def bag_sum(table: Tensor, pairs: Pairs, values: Tensor) -> Tensor:
    """`out[n] = sum over pairs (n, f) of value * table[f]`.

    Args:
        table: `(F, d)` rows to sum.
        pairs: the pairs.
        values: `(pairs,)`.

    Returns:
        `(tokens, d)`.
    """
    if values.numel() == 0:
        return table.new_zeros(pairs.n_tokens, table.shape[1])
    if use_triton(table):
        from clt_lightning.transcoder import triton_kernels

        out = table.new_empty(1, pairs.n_tokens, table.shape[1])
        triton_kernels.add_bags(out, table[:, None], pairs, values, add=False)
        return out[0]
    return F.embedding_bag(
        pairs.features_i32,
        table,
        pairs.offsets_i32,
        mode="sum",
        per_sample_weights=values.to(table.dtype),
        include_last_offset=True,
    )


@torch.no_grad()
def scatter_rows(pairs: Pairs, sorted_values: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """`out[f] = sum over pairs (n, f) of value * rows[n]`, values in feature-major order.

    Args:
        pairs: the pairs.
        sorted_values: `(pairs,)`, in the order of `pairs.by_feature`.
        rows: `(tokens, d)`.
        out: `(F, d)` to write to, whatever it holds.

    Returns:
        `(F, d)`: `out`, or a new tensor.
    """
    if sorted_values.numel() == 0:
        return rows.new_zeros(pairs.n_features, rows.shape[1]) if out is None else out.zero_()
    if use_triton(rows):
        from clt_lightning.transcoder import triton_kernels

        sums = triton_kernels.gradients(rows[None], pairs, sorted_values=sorted_values)[1]
        assert sums is not None
        return sums[:, 0] if out is None else out.copy_(sums[:, 0])
    sorted_values = sorted_values.to(rows.dtype)
    if _has_sparse_product(rows):
        if out is None:
            out = rows.new_empty(pairs.n_features, rows.shape[1])
        # `torch.mm(out=)` would fill `out` with zeros first, and take three times as long
        return torch.addmm(out, pairs.csr(sorted_values), rows, beta=0.0, out=out)
    starts, tokens = pairs.feature_major
    # the same bag-sum as `bag_sum`, with the roles of tokens and features exchanged
    sums = F.embedding_bag(tokens, rows, starts, mode="sum", per_sample_weights=sorted_values, include_last_offset=True)
    return sums if out is None else out.copy_(sums)


def _has_sparse_product(rows: Tensor) -> bool:
    """Whether torch multiplies CSR matrices of this kind straight into given memory (MKL's product on CPU)."""
    return (
        rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.float64) and torch.backends.mkl.is_available()
    )


@torch.no_grad()
def pair_dots(pairs: Pairs, tables: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """`out[p] = sum over t of <tables[t][f], rows[t][n]>` for every pair p = (n, f), in feature-major order.

    Args:
        pairs: the pairs.
        tables: `(F, d)` each.
        rows: `(tokens, d)` each, contiguous.

    Returns:
        `(pairs,)`.
    """
    total = rows[0].new_zeros(pairs.features.numel())
    if total.numel() == 0:
        return total
    if use_triton(total):
        from clt_lightning.transcoder import triton_kernels

        for table, row in zip(tables, rows):
            dots = triton_kernels.gradients(row[None], pairs, table=table[:, None])[0]
            assert dots is not None
            total += dots.to(total.dtype)
        return total
    sums = pairs.csr(total)
    for table, row in zip(tables, rows):
        torch.sparse.sampled_addmm(sums, table, row.t(), beta=1.0, out=sums)
    return sums.values()


class _EncodePairs(torch.autograd.Function):
    """Gives given pre-activations the gradient of `<W[f], x[n]> + b[f]`."""

    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, x: Tensor, W: Tensor, b: Tensor, pairs: Pairs, gradients: GradientBuffers, key: Hashable
    ) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.pairs, ctx.gradients, ctx.key = pairs, gradients, key
        return pre.view_as(pre)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, W = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        order, _ = pairs.by_feature
        by_feature = grad[order]
        dx = bag_sum(W, pairs, grad) if ctx.needs_input_grad[1] else None
        dW = scatter_rows(pairs, by_feature, x, ctx.gradients.take(ctx.key, W)) if ctx.needs_input_grad[2] else None
        db = None
        if ctx.needs_input_grad[3]:
            db = scatter_rows(pairs, by_feature, x.new_ones(pairs.n_tokens, 1)).view(-1)
        return None, dx, dW, db, None, None, None


def encode_pairs(
    pre: Tensor,
    x: Tensor,
    W: Tensor,
    b: Tensor,
    pairs: Pairs,
    gradients: GradientBuffers | None = None,
    key: Hashable = "W_enc",
) -> Tensor:
    """The pre-activations of `pairs`, differentiable in the inputs and the encoder.

    Args:
        pre: `(pairs,)` already computed values of `<W[f], x[n]> + b[f]`.
        x: `(tokens, d)` encoder inputs.
        W: `(F, d)` encoder.
        b: `(F,)` encoder bias.
        pairs: the pairs.
        gradients: memory for the encoder's gradient.
        key: this encoder's name there.

    Returns:
        `(pairs,)`: `pre`, with gradients.
    """
    out: Tensor = _EncodePairs.apply(pre, x, W, b, pairs, gradients or GradientBuffers(), key)
    return out


def _forward_triton(
    y: Tensor, all_pairs: Sequence[Pairs], values: Sequence[Tensor], decoders: Sequence[Tensor]
) -> Tensor:
    from clt_lightning.transcoder import triton_kernels

    total = y.to(torch.promote_types(y.dtype, torch.float32))  # 16-bit tables: sources are added up in fp32
    for source, (pairs, v, W) in enumerate(zip(all_pairs, values, decoders)):
        triton_kernels.add_bags(total[source : source + W.shape[1]], W, pairs, v)
    return total.to(y.dtype)


def _backward_triton(
    pairs: Pairs, by_feature: Tensor, W: Tensor, G: Tensor, want_dots: bool, dW: Tensor | None
) -> Tensor | None:
    from clt_lightning.transcoder import triton_kernels

    if not want_dots and dW is None:
        return None
    return triton_kernels.gradients(G, pairs, W if want_dots else None, None if dW is None else by_feature, dW)[0]


class _DecodePairs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, n_layers: int, all_pairs: Sequence[Pairs], gradients: GradientBuffers, *tensors: Tensor
    ) -> Tensor:
        sources = len(all_pairs)
        values, decoders = tensors[:sources], tensors[sources:]
        ctx.all_pairs, ctx.gradients = all_pairs, gradients
        ctx.save_for_backward(*tensors)
        y = decoders[0].new_zeros(n_layers, all_pairs[0].n_tokens, decoders[0].shape[2])
        if use_triton(y):
            return _forward_triton(y, all_pairs, values, decoders)
        for source, (pairs, v, W) in enumerate(zip(all_pairs, values, decoders)):
            for t in range(W.shape[1]):
                y[source + t] += bag_sum(W[:, t], pairs, v)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        G = grads[0].contiguous()
        all_pairs: Sequence[Pairs] = ctx.all_pairs
        sources = len(all_pairs)
        values, decoders = ctx.saved_tensors[:sources], ctx.saved_tensors[sources:]
        d_values: list[Tensor | None] = []
        d_decoders: list[Tensor | None] = []
        for source, (pairs, v, W) in enumerate(zip(all_pairs, values, decoders)):
            order, _ = pairs.by_feature
            by_feature = v[order].to(W.dtype)
            want_dots = ctx.needs_input_grad[3 + source]
            dW = ctx.gradients.take(("W_dec", source), W) if ctx.needs_input_grad[3 + sources + source] else None
            targets = G[source : source + W.shape[1]]
            if use_triton(W):
                dots = _backward_triton(pairs, by_feature, W, targets, want_dots, dW)
            else:
                dots = pair_dots(pairs, W.unbind(1), targets.unbind(0)) if want_dots else None
                if dW is not None:
                    for t, rows in enumerate(targets):
                        scatter_rows(pairs, by_feature, rows, dW[:, t])
            d_values.append(None if dots is None else torch.empty_like(v).index_copy_(0, order, dots.to(v.dtype)))
            d_decoders.append(dW)
        return None, None, None, *d_values, *d_decoders


def decode_pairs(
    n_layers: int,
    all_pairs: Sequence[Pairs],
    values: Sequence[Tensor],
    decoders: Sequence[Tensor],
    gradients: GradientBuffers | None = None,
) -> Tensor:
    """Sum of decoder rows over the active pairs: `y[i + t, n] = sum of value * W_dec[i][f, t]`.

    Args:
        n_layers: number of target layers.
        all_pairs: one `Pairs` a source layer.
        values: one `(pairs,)` a source layer.
        decoders: one `(F, targets, d)` a source layer; block t writes to layer `source + t`.
        gradients: memory for the decoders' gradients.

    Returns:
        `(n_layers, tokens, d)`, without bias.
    """
    y: Tensor = _DecodePairs.apply(n_layers, all_pairs, gradients or GradientBuffers(), *values, *decoders)
    return y
