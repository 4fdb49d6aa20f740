"""What a prior on groups keeps of one layer's features, and its proximal step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clt_lightning.training.priors.base import Rule
from clt_lightning.transcoder.support import relative_norms


@dataclass(frozen=True)
class Rates:
    """Rates of a step.

    Attributes:
        slab: of groups that are there.
        spike: of groups that are not.
        adapts: whether each group's rate follows its inclusion probability; if not, all have the spike's.
    """

    slab: float
    spike: float
    adapts: bool = True

    @classmethod
    def rising(cls, prior: Any, step: int, max_steps: int, adapts: bool = True) -> Rates | None:
        """Of a prior whose spike rises from `lambda1` to `lambda0` once the penalty begins; None before it does.

        Args:
            prior: with `lambda0`, `lambda1`, `start`, `warmup_steps` and `warmup_fraction`.
            step: optimizer step.
            max_steps: of the run.
            adapts: as of the attribute.
        """
        first = round(prior.start * max_steps)
        if step < first:
            return None
        rise = prior.warmup_steps or prior.warmup_fraction * max_steps
        share = min(1.0, (step - first + 1) / rise) if rise > 0 else 1.0
        return cls(prior.lambda1, prior.lambda1 + share * (prior.lambda0 - prior.lambda1), adapts)

    def inclusion(self, g: Tensor, theta: Tensor) -> Tensor:
        """p* of groups of relative norm g `(F, targets)`, given theta `(targets,)`."""
        if not self.adapts:
            return torch.zeros_like(g)
        return spike_and_slab(g, theta, self)


def slab_and_spike_rules(prior: Any) -> tuple[Rule, ...]:
    """For `check_ranges`: the settings that every spike-and-slab prior has."""
    return (
        ("lambda1", prior.lambda1, prior.lambda1 > 0, "above 0"),
        ("lambda0", prior.lambda0, prior.lambda0 >= prior.lambda1, "lambda1 or more"),
        ("a", prior.a, prior.a >= 1, "1 or more"),
        ("b", prior.b, prior.b is None or prior.b >= 1, "1 or more, or null"),
        ("start", prior.start, 0 <= prior.start < 1, "from 0 to below 1"),
    )


def spike_and_slab(g: Tensor, theta: Tensor, rates: Rates) -> Tensor:
    """p*, the probability that what has the relative norm g is there (of the slab), given the prior probability theta.

    Of densities `rate * exp(-rate * g)` with their factors; g and theta are broadcast.
    """
    odds = torch.logit(theta) + math.log(rates.slab / rates.spike) + (rates.spike - rates.slab) * g
    return torch.sigmoid(odds)


def beta_mean(sums: Tensor, n: Tensor, a: float, b: float | None) -> Tensor:
    """theta, from the sums of n inclusion probabilities, under a beta prior of a and b (None: n)."""
    return ((sums + a - 1) / (a + (n if b is None else b) + n - 2).clamp_min(1.0)).clamp(1e-10, 1 - 1e-6)


@dataclass
class LayerState:
    """One layer's features, of this process.

    A threshold is `p * (slab sum) + (1 - p) * (spike sum)`, with the sums of rates since the row's last step: a group's
    soft thresholds add up as long as nothing else moves it, so that a row at rest takes all of them in one.

    Attributes:
        theta: `(targets,)`.
        p: `(F, targets)` inclusion probabilities, as of the row's last step.
        alive: `(F, targets)` bool, groups that are not zero.
        slab_mark, spike_mark: `(F,)` float64, the sums up to which the row's thresholds have been applied.
        is_behind: whether a row's mark may be behind the sums.
    """

    theta: Tensor
    p: Tensor
    alive: Tensor
    slab_mark: Tensor
    spike_mark: Tensor
    is_behind: bool = False

    @classmethod
    def fresh(cls, W: Tensor) -> LayerState:
        """For a decoder `(F, targets, d_out)`: nothing is known to be absent."""
        n, targets = W.shape[:2]
        marks = torch.zeros(2, n, dtype=torch.float64, device=W.device)
        dtype = torch.float64 if W.dtype == torch.float64 else torch.float32
        return cls(
            torch.full((targets,), 0.5, dtype=dtype, device=W.device),
            torch.ones(n, targets, dtype=dtype, device=W.device),
            torch.ones(n, targets, dtype=torch.bool, device=W.device),
            marks[0],
            marks[1],
        )

    def step(
        self,
        W: Tensor,
        rows: Tensor | None,
        rates: Rates,
        before: tuple[float, float],
        now: tuple[float, float],
    ) -> None:
        """The proximal step after an optimizer's.

        Args:
            W: `(F, targets, d_out)`, changed in place.
            rows: which rows the optimizer moved; None: all. The others keep their p, and their thresholds wait.
            rates: of this step.
            before, now: sums of the slab's and the spike's rates before this step and after it.
        """
        norms, shift = self._norms(W, rows), self._waiting(rows, before)
        p = rates.inclusion(relative_norms(norms), self.theta)
        slab, spike = (b - a for a, b in zip(before, now))
        self._shorten(W, rows, norms, shift + slab * p + spike * (1 - p))
        if rows is None:
            self.p = p
        else:
            self.p[rows] = p
        self._mark(rows, now)
        self.is_behind = rows is not None

    def settle(self, W: Tensor, rows: Tensor | None, now: tuple[float, float]) -> None:
        """Applies the thresholds that wait, to some rows (repeated ones count once) or to all."""
        if rows is not None:
            late = torch.zeros_like(self.slab_mark, dtype=torch.bool)
            late[rows] = True
            rows = (late & (self.spike_mark < now[1])).nonzero().flatten()
            if not rows.numel():
                return
        self._shorten(W, rows, self._norms(W, rows), self._waiting(rows, now))
        self._mark(rows, now)
        if rows is None:
            self.is_behind = False

    def hold(self, W: Tensor, rows: Tensor | None) -> None:
        """Sets the groups that are not alive to zero, in rows that the optimizer moved."""
        self._scale(W, rows, (self.alive if rows is None else self.alive[rows]).to(W.dtype))

    def _waiting(self, rows: Tensor | None, now: tuple[float, float]) -> Tensor:
        """`(rows, targets)` thresholds since each row's mark."""
        slab, spike = now[0] - self.slab_mark, now[1] - self.spike_mark
        p = self.p
        if rows is not None:
            slab, spike, p = slab[rows], spike[rows], p[rows]
        return slab.to(p)[:, None] * p + spike.to(p)[:, None] * (1 - p)

    def _mark(self, rows: Tensor | None, now: tuple[float, float]) -> None:
        for mark, value in zip((self.slab_mark, self.spike_mark), now):
            if rows is None:
                mark.fill_(value)
            else:
                mark[rows] = value

    @staticmethod
    def _norms(W: Tensor, rows: Tensor | None) -> Tensor:
        # block by block: W lies in memory target by target
        blocks = (b if rows is None else b.index_select(0, rows) for b in W.unbind(1))
        return torch.stack([torch.linalg.vector_norm(b, dim=1) for b in blocks], 1)

    def _shorten(self, W: Tensor, rows: Tensor | None, norms: Tensor, threshold: Tensor) -> None:
        factor = (1 - threshold / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min_(0)
        self._scale(W, rows, factor)
        alive = (factor > 0) & (norms > 0)
        if rows is None:
            self.alive = alive
        else:
            self.alive[rows] = alive

    @staticmethod
    def _scale(W: Tensor, rows: Tensor | None, factor: Tensor) -> None:
        for block, f in zip(W.unbind(1), factor.to(W.dtype).unbind(1)):
            if rows is None:
                block.mul_(f[:, None])
            else:
                block.index_copy_(0, rows, block.index_select(0, rows) * f[:, None])
