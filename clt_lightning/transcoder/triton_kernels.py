"""Triton kernels of the sparse path, for CUDA devices.

Two gathers do everything. `add_bags` sums decoder rows over a token's pairs, for all targets of a source layer in one
launch. `gradients` walks the pairs feature by feature and reads every row of the output's gradient once, for both the
code gradient (a dot product per pair) and the decoder's (a weighted sum a feature).

How they use the machine:
- A program handles one token (or one chunk of a feature), one target and one block of columns. Neighbouring programs
  differ in the token (the chunk), so that those in flight gather from one `(F, columns)` block of the decoder, or one
  `(tokens, columns)` block of the gradient, which the L2 cache holds: 25 MB and 4 MB at F 24,576, 4096 tokens, fp32.
- A round loads several rows at once (independent loads in flight, 16 bytes a thread), multiplies in the accumulation
  type and adds in registers: fp32, or float64 for float64 tables.
- No atomics. Sums over a token run in pair order; sums over a feature in token order, chunk by chunk
  (`feature_chunks`); parts of a dot product (a column block of a target each) are laid down side by side and added up
  afterwards. The same input gives the same bits.
- Tables are read in the type they have. Casting fp32 masters to bf16 once per step would halve the gather's bytes, and
  cost 6 bytes a weight and half the weights' memory again.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from clt_lightning.transcoder.pairs import Pairs

# one warp reads one block of columns, 16 or 32 bytes a thread and row, and holds a round's rows in registers
MAX_COLUMNS = 256


@triton.jit
def _add_bags(
    table,
    table_feature,
    table_target,
    features,
    offsets,
    values,
    out,
    out_target,
    out_token,
    width,
    ADD: tl.constexpr,
    SUM_TYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    target = tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    start = tl.load(offsets + token)
    end = tl.load(offsets + token + 1)
    block = table + target * table_target + columns
    total = tl.zeros((COLUMNS,), SUM_TYPE)
    for position in range(start, end, ROWS):
        pair = position + tl.arange(0, ROWS)
        value = tl.load(values + pair, mask=pair < end, other=0.0).to(SUM_TYPE)
        feature = tl.load(features + pair, mask=pair < end, other=0).to(tl.int64)
        # a value of exactly 0 is padding: its row need not be read
        rows = tl.load(
            block[None, :] + feature[:, None] * table_feature,
            mask=(value != 0)[:, None] & inside[None, :],
            other=0.0,
        ).to(SUM_TYPE)
        total += tl.sum(rows * value[:, None], 0)
    place = out + target * out_target + token * out_token + columns
    if ADD:
        total += tl.load(place, mask=inside, other=0.0).to(SUM_TYPE)
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _feature_gradients(
    rows,
    rows_target,
    rows_token,
    table,
    table_feature,
    table_target,
    tokens,
    offsets,
    values,
    chunk_feature,
    first_chunk,
    first_slot,
    parts,
    n_pairs,
    grad,
    grad_feature,
    grad_target,
    slots,
    n_targets,
    n_features,
    width,
    DOTS: tl.constexpr,
    SUMS: tl.constexpr,
    CHUNK: tl.constexpr,
    SUM_TYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    chunk = tl.program_id(0)
    target = tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    feature = tl.load(chunk_feature + chunk).to(tl.int64)
    if feature < n_features:
        first = tl.load(first_chunk + feature)
        start = tl.load(offsets + feature) + (chunk - first) * CHUNK
        end = tl.minimum(start + CHUNK, tl.load(offsets + feature + 1))
        block = rows + target * rows_target + columns
        total = tl.zeros((COLUMNS,), SUM_TYPE)
        if DOTS:
            weight = tl.load(
                table + feature * table_feature + target * table_target + columns,
                mask=columns < tl.where(start < end, width, 0),  # no pairs: the row need not be read
                other=0.0,
            ).to(SUM_TYPE)
            part = parts + (target * tl.num_programs(1) + tl.program_id(1)) * n_pairs
        for position in range(start, end, ROWS):
            pair = position + tl.arange(0, ROWS)
            token = tl.load(tokens + pair, mask=pair < end, other=0).to(tl.int64)
            g = tl.load(
                block[None, :] + token[:, None] * rows_token,
                mask=(pair < end)[:, None] & inside[None, :],
                other=0.0,
            ).to(SUM_TYPE)
            if SUMS:
                value = tl.load(values + pair, mask=pair < end, other=0.0).to(SUM_TYPE)
                total += tl.sum(g * value[:, None], 0)
            if DOTS:
                tl.store(part + pair, tl.sum(g * weight[None, :], 1), mask=pair < end)
        if SUMS:
            if tl.load(first_chunk + feature + 1) - first > 1:
                slot = (tl.load(first_slot + feature) + chunk - first).to(tl.int64)
                tl.store(slots + (slot * n_targets + target) * width + columns, total, mask=inside)
            else:
                place = grad + feature * grad_feature + target * grad_target + columns
                tl.store(place, total.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def _add_slots(
    slots,
    slot_feature,
    first_slot,
    grad,
    grad_feature,
    grad_target,
    n_targets,
    n_features,
    width,
    COLUMNS: tl.constexpr,
):
    slot = tl.program_id(0)
    target = tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    feature = tl.load(slot_feature + slot).to(tl.int64)
    if feature < n_features:
        start = tl.load(first_slot + feature)
        # the program of a feature's first slot adds all of them, the others have nothing to do
        if slot == start:
            total = tl.zeros((COLUMNS,), slots.dtype.element_ty)
            place = slots + (start.to(tl.int64) * n_targets + target) * width + columns
            for _ in range(start, tl.load(first_slot + feature + 1)):
                total += tl.load(place, mask=inside, other=0.0)
                place += n_targets * width
            place = grad + feature * grad_feature + target * grad_target + columns
            tl.store(place, total.to(grad.dtype.element_ty), mask=inside)


def _sum_type(dtype: torch.dtype) -> tuple[torch.dtype, Any]:
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def _tile(width: int, dtype: torch.dtype) -> tuple[int, int]:
    """Rows a round and columns of a block: 63 to 128 registers a thread on Hopper, 16 to 32 warps a multiprocessor."""
    columns = max(16, min(MAX_COLUMNS, triton.next_power_of_2(width)))
    return (4 if dtype == torch.float64 else 8), columns


def _rows(t: Tensor) -> Tensor:
    """The tensor with adjacent columns."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def add_bags(out: Tensor, table: Tensor, pairs: Pairs, values: Tensor, add: bool = True) -> None:
    """`out[t, n] += sum over pairs (n, f) of value * table[f, t]`, in place.

    Args:
        out: `(targets, tokens, d)`.
        table: `(F, targets, d)`, any strides with adjacent columns.
        pairs: the pairs.
        values: `(pairs,)`.
        add: False overwrites `out`.
    """
    n_targets, n_tokens, width = out.shape
    if out.numel() == 0:
        return
    assert out.stride(2) == 1 or width == 1
    table = _rows(table)
    rows, columns = _tile(width, table.dtype)
    with torch.cuda.device_of(table):  # Triton launches on the current device, wherever the tensors are
        _add_bags[(n_tokens, triton.cdiv(width, columns), n_targets)](
            table,
            table.stride(0),
            table.stride(1),
            pairs.features_i32,
            pairs.offsets_i32,
            values.contiguous(),
            out,
            out.stride(0),
            out.stride(1),
            width,
            ADD=add,
            SUM_TYPE=_sum_type(table.dtype)[1],
            ROWS=rows,
            COLUMNS=columns,
            num_warps=1,
        )


def gradients(
    rows: Tensor,
    pairs: Pairs,
    table: Tensor | None = None,
    sorted_values: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients of a bag-sum from one gather of `rows`, the gradient of its result.

    Args:
        rows: `(targets, tokens, d)`.
        pairs: the pairs.
        table: `(F, targets, d)`; given, the dots are computed.
        sorted_values: `(pairs,)` in feature-major order; given, the sums are computed.
        out: `(F, targets, d)`, adjacent columns, where the sums are written; made if None.

    Returns:
        dots `(pairs,)` in feature-major order, `sum over t of <table[f, t], rows[t, n]>`, in the accumulation type; and
        sums `(F, targets, d)`, `sum over pairs (n, f) of value * rows[t, n]`. None for what was not asked for.
    """
    rows = _rows(rows)
    n_targets, _, width = rows.shape
    n_pairs, n_features = pairs.features.numel(), pairs.n_features
    if sorted_values is not None and out is None:
        out = rows.new_empty(n_targets, n_features, width).transpose(0, 1)
    if rows.numel() == 0 or n_pairs == 0:
        sum_dtype = _sum_type(rows.dtype)[0]
        dots = None if table is None else torch.zeros(n_pairs, dtype=sum_dtype, device=rows.device)
        return dots, None if out is None or sorted_values is None else out.zero_()

    # a float64 table in front of fp32 rows, or the other way round, accumulates in the wider of the two
    sum_dtype, sum_type = _sum_type(rows.dtype if table is None else torch.promote_types(rows.dtype, table.dtype))
    tile_rows, columns = _tile(width, rows.dtype)
    blocks = triton.cdiv(width, columns)
    chunks = pairs.feature_chunks
    starts, tokens = pairs.feature_major
    table = None if table is None else _rows(table)
    n_slots = chunks.slot_feature.numel()
    # what is not asked for is a pointer that is never followed
    nothing = rows
    parts = nothing if table is None else torch.empty(n_targets * blocks, n_pairs, dtype=sum_dtype, device=rows.device)
    slots = nothing
    if sorted_values is not None:
        assert out is not None
        assert out.stride(2) == 1 or width == 1
        slots = torch.empty(n_slots, n_targets, width, dtype=sum_dtype, device=rows.device)
    with torch.cuda.device_of(rows):
        _feature_gradients[(chunks.feature.numel(), blocks, n_targets)](
            rows,
            rows.stride(0),
            rows.stride(1),
            nothing if table is None else table,
            0 if table is None else table.stride(0),
            0 if table is None else table.stride(1),
            tokens,
            starts,
            nothing if sorted_values is None else sorted_values.contiguous(),
            chunks.feature,
            chunks.first,
            chunks.slot,
            parts,
            n_pairs,
            nothing if out is None else out,
            0 if out is None else out.stride(0),
            0 if out is None else out.stride(1),
            slots,
            n_targets,
            n_features,
            width,
            DOTS=table is not None,
            SUMS=sorted_values is not None,
            CHUNK=chunks.size,
            SUM_TYPE=sum_type,
            ROWS=tile_rows,
            COLUMNS=columns,
            num_warps=1,
        )
        if sorted_values is not None and n_slots:
            assert out is not None
            _add_slots[(n_slots, blocks, n_targets)](
                slots,
                chunks.slot_feature,
                chunks.slot,
                out,
                out.stride(0),
                out.stride(1),
                n_targets,
                n_features,
                width,
                COLUMNS=columns,
                num_warps=1,
            )
    return None if table is None else parts.sum(0), out if sorted_values is not None else None
