"""Exact top-k over features that lie on several processes.

Every process proposes its own k largest entries of a token; whatever belongs to the k largest of all is among these
proposals. Only their values travel (k numbers per token, process and layer); the k-th largest of them is the cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.parallel.shards import Shards
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.screening import DEVIATIONS, ROUNDS, Chosen, Screen, choose_top, largest_error
from clt_lightning.transcoder.top import top_indices


def select_topk(score: Tensor, k: int, shards: Shards, floor: float = 0.0) -> Pairs:
    """This process's share of the k largest entries of every row over all processes.

    Entries equal to the k-th largest are taken in the order of their feature number until there are k, for any number
    of processes. (`torch.topk` on one process leaves open which of them it takes.)

    Args:
        score: `(tokens, width)`, this process's columns; of one shape on all processes.
        k: how many of all.
        shards: the group.
        floor: entries up to here are never taken.

    Returns:
        pairs over this process's `width` features, ragged.
    """
    width = score.shape[1]
    k, mine = min(k, width * shards.size), min(k, width)
    if k == 0:
        nothing = torch.zeros(score.shape[0] + 1, dtype=torch.int64, device=score.device)
        return Pairs(nothing[:0], nothing, width)
    indices = top_indices(score, mine)
    values = score.gather(1, indices)
    proposals = shards.all_gather(values)  # (R, tokens, mine)
    everything = proposals.transpose(0, 1).flatten(1)
    cut = torch.topk(everything, k, dim=1, sorted=False).values.amin(1)
    needed = k - (everything > cut[:, None]).sum(1)
    # not settled by the proposals alone: more entries at the cut than places left, or perhaps more behind the proposals
    unclear = (everything == cut[:, None]).sum(1) > needed
    if mine < width:
        unclear |= (proposals.amin(2) == cut).any(0)
    unclear &= cut > floor
    chosen = values >= cut[:, None]
    rows = unclear.nonzero().flatten()  # the same on all processes: made from what they share
    if rows.numel():
        own = _with_lowest_ties(score[rows], cut[rows, None], needed[rows], shards)
        best = torch.topk(own.to(torch.int8), mine, dim=1)
        indices[rows], chosen[rows] = best.indices, best.values > 0
        values = score.gather(1, indices)
    chosen &= values > floor
    offsets = torch.zeros(score.shape[0] + 1, dtype=torch.int64, device=score.device)
    torch.cumsum(chosen.sum(1), 0, out=offsets[1:])
    return Pairs(indices[chosen], offsets, width)


def _with_lowest_ties(score: Tensor, cut: Tensor, needed: Tensor, shards: Shards) -> Tensor:
    """`(rows, width)` bool: entries above the cut, and of those at it the `needed` ones with the lowest numbers."""
    level = score == cut
    counts = shards.all_gather(level.sum(1))
    left = needed - counts[: shards.rank].sum(0)
    return (score > cut) | (level & (level.cumsum(1) <= left[:, None]))


def batch_winners(pre: Tensor, budget: int, shards: Shards) -> Tensor:
    """The largest of all entries of a batch, over all processes; all entries where there are no more than the budget.

    Args:
        pre: `(tokens, width)`, this process's columns.
        budget: how many.
        shards: the group.

    Returns:
        values in no order, the same on every process.
    """
    row = min(pre.shape[1], -(-4 * budget // max(pre.shape[0], 1)))
    budget = min(budget, pre.numel() * shards.size)
    mine = min(budget, pre.numel())
    candidates = torch.topk(pre, row, dim=1, sorted=False).values
    values = torch.topk(candidates.flatten(), mine, sorted=False).values
    # a token with more than 4 times its share is rare, but possible
    if row < pre.shape[1] and bool((candidates.amin(1) > values.min()).any()):
        values = torch.topk(pre.flatten(), mine, sorted=False).values
    return torch.topk(shards.all_gather(values).flatten(), budget, sorted=False).values


def screen_topk(screen: Screen, k: int, shards: Shards, magnitude: bool = False) -> Chosen:
    """As `select_topk`, from a product in low precision: each process's own k largest are exact, and enough.

    Args:
        screen: this process's columns.
        k: how many of all.
        shards: the group.
        magnitude: by absolute value.
    """
    width = screen.rough.shape[1]
    own = choose_top(screen, min(k, width), magnitude).settled()
    score = _spread_out(own.pairs, own.values.abs() if magnitude else own.values)
    pairs = select_topk(score, k, shards, floor=-1.0 if magnitude else 0.0)
    known = _spread_out(own.pairs, own.values) if magnitude else score
    return Chosen(pairs, known[pairs.tokens, pairs.features], own.repeated)


def screen_batch(screen: Screen, budget: int, shards: Shards) -> tuple[Chosen, Tensor] | None:
    """The positive ones of `batch_winners`, from a product in low precision.

    Args:
        screen: this process's columns.
        budget: how many of all.
        shards: the group.

    Returns:
        this process's winners, and the values of all processes' as `batch_winners` gives them; None, on all processes,
        where the product cannot be trusted.
    """
    first = batch_winners(screen.rough.to(screen.x.dtype), budget + budget // 4 + 1, shards)
    cut = first.min().clamp_min(0) if first.numel() else screen.x.new_zeros(())
    pairs = Pairs.from_mask(screen.rough > cut)
    repeated = cut.new_zeros((), dtype=torch.int64)
    for _ in range(ROUNDS):
        exact = screen.exact(pairs)
        winners = batch_winners(_spread_out(pairs, exact), budget, shards)
        least = winners.min().clamp_min(0) if winners.numel() else cut
        guess = pairs.entries(screen.rough)
        error = shards.all_gather(largest_error(guess, exact, pairs, guess)).amax()
        enough = least - DEVIATIONS * error
        if bool(enough >= cut):
            chosen = (exact >= least) & (exact > 0)
            return Chosen(pairs.keep(chosen), exact[chosen], repeated), winners
        mask = screen.rough > enough
        repeated = (mask & (screen.rough <= cut)).any(1).sum()
        cut, pairs = enough, Pairs.from_mask(mask)
    return None


def _spread_out(pairs: Pairs, values: Tensor) -> Tensor:
    """`(tokens, F)`: the values at their places, -inf elsewhere."""
    full = values.new_full((pairs.n_tokens, pairs.n_features), float("-inf"))
    full[pairs.tokens, pairs.features] = values
    return full
