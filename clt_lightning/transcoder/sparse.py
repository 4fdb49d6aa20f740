"""The sparse path: products that touch active (token, feature) pairs only.

Two autograd functions, `encode_pairs` and `decode_pairs`. Their plain dense counterparts stand in `reference.py`, and
the tests hold one against the other in float64. Weight gradients are built feature by feature as (sparse codes^T) x
(dense gradient): every row is written once, in token order, so results do not depend on the number of threads and no
atomics are needed. On CUDA devices Triton's kernels do the same (`triton_kernels.py`; `dispatch.py` chooses).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from clt_lightning.transcoder.dispatch import use_triton
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.shared import Shared


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


#: Pairs per feature from which on a bag-sum, and its transpose, run over copies of a few columns that caches hold
_OFTEN_READ, _OFTEN_WRITTEN = 10, 16
#: Of so many columns, where a table is larger than this many numbers
_COLUMNS, _LARGE = 96, 2**20


def put_bag(out: Tensor, table: Tensor, pairs: Pairs, values: Tensor, add: bool = False) -> None:
    """`out = bag_sum(table, pairs, values)`, on a CPU.

    A table of several megabytes is read from far memory for every pair. Where each row is read often, a few columns at
    a time are copied together first: they stay in a near cache while all tokens read them.

    Args:
        out: `(tokens, d)`, whatever it holds.
        table, pairs, values: as `bag_sum` takes them.
        add: add to what `out` holds.
    """
    if _in_columns(table, pairs, _OFTEN_READ):
        room = table.new_empty(len(table), _COLUMNS)
        for start in range(0, table.shape[1], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            _put(bag_sum(room.copy_(table[:, columns]), pairs, values), out[:, columns], add)
    else:
        _put(bag_sum(table, pairs, values), out, add)


def _in_columns(table: Tensor, pairs: Pairs, often: int) -> bool:
    """Whether a sum over rows is faster over some columns at a time."""
    return (
        table.dtype == torch.float32
        and table.shape[1] % _COLUMNS == 0
        and pairs.n_features * table.shape[1] > _LARGE
        and pairs.features.numel() >= often * pairs.n_features
    )


@torch.no_grad()
def scatter_rows(
    pairs: Pairs, sorted_values: Tensor, rows: Tensor, out: Tensor | None = None, add: bool = False
) -> Tensor:
    """`out[f] = sum over pairs (n, f) of value * rows[n]`, values in feature-major order.

    Args:
        pairs: the pairs.
        sorted_values: `(pairs,)`, in the order of `pairs.by_feature`.
        rows: `(tokens, d)`.
        out: `(F, d)` to write to, whatever it holds.
        add: add to what `out` holds.

    Returns:
        `(F, d)`: `out`, or a new tensor.
    """
    if sorted_values.numel() == 0 and add:
        assert out is not None
        return out
    if sorted_values.numel() == 0:
        return rows.new_zeros(pairs.n_features, rows.shape[1]) if out is None else out.zero_()
    if use_triton(rows):
        from clt_lightning.transcoder import triton_kernels

        sums = triton_kernels.gradients(rows[None], pairs, sorted_values=sorted_values)[1]
        assert sums is not None
        return _put(sums[:, 0], out, add)
    sorted_values = sorted_values.to(rows.dtype)
    in_columns = rows.device.type == "cpu" and _in_columns(rows, pairs, _OFTEN_WRITTEN)
    if out is None and (in_columns or _has_sparse_product(rows)):
        out = rows.new_empty(pairs.n_features, rows.shape[1])
    if in_columns:
        assert out is not None
        for start in range(0, rows.shape[1], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            _put(_bags_of_features(pairs, sorted_values, rows[:, columns].contiguous()), out[:, columns], add)
        return out
    if _has_sparse_product(rows):
        assert out is not None
        # `torch.mm(out=)` would fill `out` with zeros first, and take three times as long
        return torch.addmm(out, pairs.csr(sorted_values), rows, beta=1.0 if add else 0.0, out=out)
    return _put(_bags_of_features(pairs, sorted_values, rows), out, add)


def _bags_of_features(pairs: Pairs, sorted_values: Tensor, rows: Tensor) -> Tensor:
    """The same bag-sum as `bag_sum`, with the roles of tokens and features exchanged: `(F, d)`."""
    starts, tokens = pairs.feature_major
    return F.embedding_bag(tokens, rows, starts, mode="sum", per_sample_weights=sorted_values, include_last_offset=True)


def _put(sums: Tensor, out: Tensor | None, add: bool) -> Tensor:
    if out is None:
        return sums
    return out.add_(sums) if add else out.copy_(sums)


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
    def forward(ctx: Any, pre: Tensor, x: Tensor, weight: Tensor, b: Tensor, pairs: Pairs, shared: Shared) -> Tensor:
        ctx.save_for_backward(x)
        ctx.pairs, ctx.shared = pairs, shared
        return pre.view_as(pre)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        (x,) = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        shared: Shared = ctx.shared
        order, _ = pairs.by_feature
        by_feature = grad.index_select(0, order)
        dx = bag_sum(shared.weight, pairs, grad) if ctx.needs_input_grad[1] else None
        if ctx.needs_input_grad[2]:
            out, add = shared.block()
            scatter_rows(pairs, by_feature, x, out, add)
        db = None
        if ctx.needs_input_grad[3]:
            db = _sums_of_features(pairs, grad, by_feature)
        return None, dx, shared.nothing() if ctx.needs_input_grad[2] else None, db, None, None


def _sums_of_features(pairs: Pairs, values: Tensor, by_feature: Tensor) -> Tensor:
    """`(F,)`: the sum of each feature's values, in token order, from values in both orders."""
    if values.device.type == "cpu":  # one thread adds them, in their order
        return values.new_zeros(pairs.n_features).index_add_(0, pairs.features, values)
    return scatter_rows(pairs, by_feature, values.new_ones(pairs.n_tokens, 1)).view(-1)


def encode_pairs(
    pre: Tensor,
    x: Tensor,
    W: Tensor | Shared,
    b: Tensor,
    pairs: Pairs,
) -> Tensor:
    """The pre-activations of `pairs`, differentiable in the inputs and the encoder.

    Args:
        pre: `(pairs,)` already computed values of `<W[f], x[n]> + b[f]`.
        x: `(tokens, d)` encoder inputs.
        W: `(F, d)` encoder, or its shared gradient.
        b: `(F,)` encoder bias.
        pairs: the pairs.

    Returns:
        `(pairs,)`: `pre`, with gradients.
    """
    shared = W if isinstance(W, Shared) else Shared(W)
    out: Tensor = _EncodePairs.apply(pre, x, shared.handle, b, pairs, shared)
    return out


def _forward_triton(y: Tensor, parts: Sequence[Part], values: Sequence[Tensor]) -> Tensor:
    from clt_lightning.transcoder import triton_kernels

    total = y.to(torch.promote_types(y.dtype, torch.float32))  # 16-bit tables: sources are added up in fp32
    for part, v in zip(parts, values):
        triton_kernels.add_bags(part.of(total), part.blocks, part.pairs, v)
    return total.to(y.dtype)


def _backward_triton(
    pairs: Pairs, by_feature: Tensor, part: Part, G: Tensor, want_dots: bool, want_sums: bool
) -> Tensor | None:
    from clt_lightning.transcoder import triton_kernels

    if not want_dots and not want_sums:
        return None
    table = part.blocks if want_dots else None
    if not want_sums:
        return triton_kernels.gradients(G, pairs, table)[0]
    out, add = part.shared.range(part.start, part.stop)
    dots, sums = triton_kernels.gradients(G, pairs, table, by_feature, None if add else out)
    if add:
        assert sums is not None
        out.add_(sums)
    return dots


@dataclass(frozen=True)
class Part:
    """A source layer's share in a sum of decoder rows.

    Attributes:
        pairs: its active pairs.
        shared: its decoder `(F, targets, d)`.
        start: first block of the decoder that is read; `stop`: one past the last.
        row: the row of the result that the first of these blocks adds to.
    """

    pairs: Pairs
    shared: Shared
    start: int
    stop: int
    row: int

    @property
    def blocks(self) -> Tensor:
        return self.shared.weight[:, self.start : self.stop]

    def of(self, rows: Tensor) -> Tensor:
        """The rows that it adds to."""
        return rows[self.row : self.row + self.stop - self.start]


class _DecodePairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, n_rows: int, parts: Sequence[Part], *tensors: Tensor) -> Tensor:
        values = tensors[: len(parts)]
        ctx.parts = parts
        ctx.save_for_backward(*values)
        table = parts[0].shared.weight
        shape = n_rows, parts[0].pairs.n_tokens, table.shape[2]
        if use_triton(table):
            return _forward_triton(table.new_zeros(shape), parts, values)
        y, written = table.new_empty(shape), [False] * n_rows
        for part, v in zip(parts, values):
            for row, block in enumerate(part.blocks.unbind(1) if v.numel() else (), part.row):
                put_bag(y[row], block, part.pairs, v, written[row])
                written[row] = True
        for row, done in enumerate(written):
            if not done:
                y[row].zero_()
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        G = grads[0].contiguous()
        parts: Sequence[Part] = ctx.parts
        d_values: list[Tensor | None] = []
        handles: list[Tensor | None] = []
        for number, (part, v) in enumerate(zip(parts, ctx.saved_tensors)):
            pairs, blocks, rows = part.pairs, part.blocks, part.of(G)
            order, _ = pairs.by_feature
            by_feature = v.index_select(0, order).to(blocks.dtype)
            want_dots = ctx.needs_input_grad[2 + number]
            want_sums = ctx.needs_input_grad[2 + len(parts) + number]
            if use_triton(blocks):
                dots = _backward_triton(pairs, by_feature, part, rows, want_dots, want_sums)
            else:
                dots = pair_dots(pairs, blocks.unbind(1), rows.unbind(0)) if want_dots else None
                for t, row in enumerate(rows if want_sums else ()):
                    out, add = part.shared.block(part.start + t)
                    scatter_rows(pairs, by_feature, row, out, add)
            d_values.append(None if dots is None else torch.empty_like(v).index_copy_(0, order, dots.to(v.dtype)))
            handles.append(part.shared.nothing() if want_sums else None)
        return None, None, *d_values, *handles


def decode_parts(n_rows: int, parts: Sequence[Part], values: Sequence[Tensor]) -> Tensor:
    """Sum of decoder rows over the active pairs of all parts: `y[row + t, n] = sum of value * W[f, start + t]`.

    Args:
        n_rows: rows of the result, one per target layer.
        parts: at least one.
        values: one `(pairs,)` per part.

    Returns:
        `(n_rows, tokens, d)`, without bias.
    """
    y: Tensor = _DecodePairs.apply(n_rows, parts, *values, *(part.shared.handle for part in parts))
    return y


def decode_pairs(
    n_layers: int, all_pairs: Sequence[Pairs], values: Sequence[Tensor], decoders: Sequence[Tensor | Shared]
) -> Tensor:
    """Sum of decoder rows over the active pairs: `y[i + t, n] = sum of value * W_dec[i][f, t]`.

    Args:
        n_layers: number of target layers.
        all_pairs: one `Pairs` per source layer.
        values: one `(pairs,)` per source layer.
        decoders: one `(F, targets, d)` per source layer, or its shared gradient; block t writes to layer `source + t`.

    Returns:
        `(n_layers, tokens, d)`, without bias.
    """
    shared = [W if isinstance(W, Shared) else Shared(W) for W in decoders]
    parts = [Part(p, one, 0, one.weight.shape[1], source) for source, (p, one) in enumerate(zip(all_pairs, shared))]
    return decode_parts(n_layers, parts, values)


class _DenseTerm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, handle: Tensor, shared: Shared, block: int) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.shared, ctx.block = shared, block
        return codes @ shared.weight[:, block]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (codes,) = ctx.saved_tensors
        shared: Shared = ctx.shared
        grad = grads[0].to(shared.weight.dtype)  # under autocast the term is narrower than the decoder
        d_codes = (grad @ shared.weight[:, ctx.block].t()).to(codes.dtype) if ctx.needs_input_grad[0] else None
        if ctx.needs_input_grad[1]:
            out, add = shared.block(ctx.block)
            wide = codes.to(grad.dtype)
            out.addmm_(wide.t(), grad) if add else torch.mm(wide.t(), grad, out=out)
        return d_codes, shared.nothing() if ctx.needs_input_grad[1] else None, None, None


def dense_term(codes: Tensor, shared: Shared, block: int) -> Tensor:
    """`codes (tokens, F) @ W[:, block]`, `(tokens, d)`; the gradient of the decoder goes to its shared place."""
    term: Tensor = _DenseTerm.apply(codes, shared.handle, shared, block)
    return term
