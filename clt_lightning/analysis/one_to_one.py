"""One-to-one matching of two sets by their cosines: the best there is, or largest first where that takes too long."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.feature_rows import KINDS, Pair
from clt_lightning.core.errors import UserError

Assignment = Literal["auto", "hungarian", "greedy"]
ASSIGNMENTS = ("auto", "hungarian", "greedy")
#: Pairs of features up to which `auto` takes the Hungarian assignment: 6,144 x 6,144 of a kind take seconds and 0.5 GB
LARGEST = 1 << 26
_CANDIDATES = 16


def assign(scores: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of rows and columns whose scores have the largest sum (Hungarian assignment).

    Args:
        scores: `(n, m)`, all finite.

    Returns:
        rows and columns, both `(min(n, m),)` int64; rows ascending.
    """
    from scipy.optimize import linear_sum_assignment

    table = scores.detach().cpu().numpy() if isinstance(scores, Tensor) else scores
    rows, columns = linear_sum_assignment(table, maximize=True)
    return rows.astype(np.int64), columns.astype(np.int64)


def chosen(assignment: Assignment, n: int, m: int) -> Literal["hungarian", "greedy"]:
    """Which of the two `auto` means for n x m features.

    Raises:
        UserError: there is no such assignment.
    """
    if assignment not in ASSIGNMENTS:
        raise UserError(f"assignment must be one of {', '.join(ASSIGNMENTS)}, got {assignment!r}")
    if assignment == "auto":
        return "hungarian" if n * m <= LARGEST else "greedy"
    return assignment


def best_means(pair: Pair) -> dict[str, float]:
    """By kind the mean cosine of the best one-to-one matching; features that are left over do not count."""
    n = len(pair.decoders[0])
    tables: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for _, scores in pair.blocks(torch.arange(n)):
        for kind in KINDS:
            tables[kind].append(scores[kind].cpu())
    out = {}
    for kind in KINDS:
        table = torch.cat(tables.pop(kind)).numpy()
        rows, columns = assign(table)
        out[kind] = float(table[rows, columns].mean(dtype=np.float64))
    return out


def greedy_means(pair: Pair) -> dict[str, float]:
    """As `best_means`, the largest cosines first: never more, and without the whole table in memory."""
    n = len(pair.decoders[0])
    candidates = {kind: _Candidates() for kind in KINDS}
    for rows, scores in pair.blocks(torch.arange(n)):
        for kind in KINDS:
            candidates[kind].take(rows, scores[kind])
    return {kind: _largest_first(pair, kind, candidates[kind]) for kind in KINDS}


def one_to_one(pair: Pair, assignment: Literal["hungarian", "greedy"]) -> dict[str, float]:
    """By kind the mean cosine of a one-to-one matching."""
    return best_means(pair) if assignment == "hungarian" else greedy_means(pair)


class _Candidates:
    """The pairs with the largest cosines of every row, from which a one-to-one matching is made."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self, rows: Tensor, scores: Tensor, columns: Tensor | None = None) -> None:
        """Some rows' cosines `(rows, n)` with the features `columns`; None: with all, in order."""
        top = scores.topk(min(_CANDIDATES, scores.shape[1]), 1)
        which = top.indices.flatten().cpu()
        which = which if columns is None else columns[which]
        self._parts.append((top.values.flatten().cpu(), rows.repeat_interleave(top.values.shape[1]), which))

    def pick(self, used_a: np.ndarray, used_b: np.ndarray) -> float:
        """Takes pairs, largest first, whose features are both free; marks them, and gives the sum of their cosines."""
        score, row, column = (torch.cat(part).numpy() for part in zip(*self._parts))
        total = 0.0
        for i in np.argsort(-score, kind="stable").tolist():
            if not used_a[row[i]] and not used_b[column[i]]:
                used_a[row[i]] = used_b[column[i]] = True
                total += float(score[i])
        return total


def _largest_first(pair: Pair, kind: str, candidates: _Candidates) -> float:
    used = [np.zeros(len(rows), bool) for rows in pair.decoders]
    total = candidates.pick(*used)
    while not (used[0].all() or used[1].all()):
        rows, columns = (torch.from_numpy(~part).nonzero()[:, 0] for part in used)
        left = pair.take(torch.arange(len(used[0])), columns)
        candidates = _Candidates()
        for part, scores in left.blocks(rows):
            candidates.take(part, scores[kind], columns)
        total += candidates.pick(*used)
    return total / min(map(len, used))
