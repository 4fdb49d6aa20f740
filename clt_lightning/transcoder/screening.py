"""A low-precision product that only screens: what is chosen is decided in full precision.

The encoder's product in bf16 says for most features that they cannot be chosen. The few that might be are computed
again in fp32, and chosen among. How far the product is off is measured on these few: where the ones left out are not
further from the cut than that, the product is made again in fp32, a token's or, at the worst, the layer's. So the codes
are those of an fp32 product, but for the rare row that an error of more than `DEVIATIONS` standard deviations changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.transcoder.favoured import Favoured
from clt_lightning.transcoder.order import kth_largest, true_places
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.sparse import pair_dots
from clt_lightning.transcoder.top import top_indices

#: Candidates beyond the k that are wanted: a share of k, and at least so many
SLACK_SHARE, SLACK = 0.5, 8
#: How many standard deviations of its error the product is given
DEVIATIONS = 5.0
#: How often candidates are widened before an fp32 product is made
ROUNDS = 4
#: Of so many tokens one tells the error beforehand, where it is not known which candidates are enough
SAMPLE = 17
#: Above this share of candidates an fp32 product is the cheaper one (CPU)
MANY = 0.25


@dataclass(frozen=True)
class Chosen:
    """What an activation chose from a screen.

    Attributes:
        pairs: what can be active or get a gradient.
        values: `(pairs,)` their pre-activations in full precision.
        repeated: scalar tensor, the number of tokens that the first candidates did not settle; None without a screen.
        settle: makes the right choice where `repeated` (which it is given) is not 0; None if this one is right.
    """

    pairs: Pairs
    values: Tensor
    repeated: Tensor | None = None
    settle: Callable[[int], Chosen] | None = None

    def settled(self) -> Chosen:
        """The right choice; may wait for the device."""
        return settle_all([self])[0]


def settle_all(chosen: Sequence[Chosen]) -> list[Chosen]:
    """The right choices; waits once for the device at most."""
    if all(one.settle is None for one in chosen):
        return list(chosen)
    counts = torch.stack([cast(Tensor, one.repeated) for one in chosen]).tolist()
    return [one if one.settle is None or not count else one.settle(count) for one, count in zip(chosen, counts)]


class Screen:
    """A layer's pre-activations in low precision, with the means to know any of them exactly.

    Args:
        x: `(tokens, d)` encoder inputs.
        W: `(F, d)` encoder.
        b: `(F,)` bias.
        low: the type of the product.
        favoured: tokens whose pre-activations are weighted, here and in all that the screen knows.

    Attributes:
        rough: `(tokens, F)` in the low type, the bias in it.
    """

    def __init__(self, x: Tensor, W: Tensor, b: Tensor, low: torch.dtype, favoured: Favoured | None = None) -> None:
        self.x, self.W, self.b = x.detach(), W.detach(), b.detach()
        self.weights = None if favoured is None else favoured.weights(self.x)
        if self.weights is not None:
            self.x = self.x * self.weights[:, None]
        # about the mean token: a mean that the bias takes away again would be most of the rounding
        centre = self.x.mean(0) if len(self.x) else self.x.new_zeros(self.x.shape[1])
        bias = torch.addmv(self.b, self.W, centre)
        self.rough = F.linear((self.x - centre).to(low), self.W.to(low), bias.to(low))
        if favoured is not None:
            self.rough.index_add_(
                0, favoured.rows, (self.b * (favoured.weight - 1)).to(low).expand(len(favoured.rows), -1)
            )

    def exact(self, pairs: Pairs) -> Tensor:
        """`(pairs,)`: the pre-activations of pairs, in full precision."""
        order, _ = pairs.by_feature
        dots = pair_dots(pairs, [self.W], [self.x])
        bias = self.b[pairs.features]
        if self.weights is not None:
            bias = bias * self.weights[pairs.tokens]
        return torch.empty_like(dots).index_copy_(0, order, dots).add_(bias)

    def of_tokens(self, tokens: Tensor) -> Screen:
        """The screen of some tokens alone."""
        part = copy.copy(self)
        part.x, part.rough = self.x[tokens], self.rough[tokens]
        part.weights = None if self.weights is None else self.weights[tokens]
        return part

    def rows(self, tokens: Tensor) -> Tensor:
        """`(len(tokens), F)`: all pre-activations of some tokens, in full precision."""
        weights = None if self.weights is None else self.weights[tokens]
        return self._in_full(self.x[tokens], weights)

    def everything(self) -> Tensor:
        """`(tokens, F)`: all pre-activations, in full precision."""
        return self._in_full(self.x, self.weights)

    def _in_full(self, x: Tensor, weights: Tensor | None) -> Tensor:
        if weights is None:
            return F.linear(x, self.W, self.b)
        return torch.addmm(torch.outer(weights, self.b), x, self.W.t())


def choose_top(screen: Screen, k: int, magnitude: bool = False) -> Chosen:
    """The k largest pre-activations of each token, rectangular; which of those at 0 or below is left open.

    Args:
        screen: the layer's.
        k: at most F.
        magnitude: by absolute value; then those at 0 or below count as well.
    """
    tokens, width = screen.rough.shape
    proposed = min(k + max(SLACK, round(SLACK_SHARE * k)), width)
    score = screen.rough.abs() if magnitude else screen.rough
    candidates = top_indices(score, proposed)
    pairs = Pairs.rectangular(candidates, width)
    exact = screen.exact(pairs).view(tokens, proposed)
    key = exact.abs() if magnitude else exact
    best = torch.topk(key, k, dim=1, sorted=False)
    if proposed == width or not tokens:
        doubtful = torch.zeros(tokens, dtype=torch.bool, device=exact.device)
    else:
        guess = screen.rough.gather(1, candidates).to(exact.dtype)
        size = guess.abs() if magnitude else guess
        # of those nearest to the cut: large codes are rounded more, and no doubt of theirs matters
        near = torch.topk(size, nearest(proposed), dim=1, largest=False, sorted=False).indices
        error = (exact - guess).square_().gather(1, near).mean(1).sqrt_()
        least = best.values.amin(1)
        left_out = size.amin(1)
        # what is not positive is no code, so it does not matter which of it is kept
        doubtful = ~(left_out + DEVIATIONS * error <= (least if magnitude else least.clamp_min(0)))
    chosen = pairs.columns(best.indices)
    values = exact.gather(1, best.indices)
    repeated = doubtful.sum()

    def settle(count: int) -> Chosen:
        rows = torch.argsort(doubtful, descending=True, stable=True)[:count]
        known = screen.rows(rows)
        features = chosen.features.clone().view(tokens, k)
        features[rows] = again = top_indices(known.abs() if magnitude else known, k)
        values[rows] = known.gather(1, again)
        return Chosen(Pairs.rectangular(features, width), values.view(-1), repeated)

    return Chosen(chosen, values.view(-1), repeated, settle)


def choose_batch_top(screen: Screen, budget: int, cut: Tensor | None = None) -> Chosen | None:
    """The `budget` largest positive pre-activations of all tokens together.

    Args:
        screen: the layer's.
        budget: how many.
        cut: what lies above this value in the screen is looked at first, if it is at least the budget.

    Returns:
        None if so many are near the cut that an fp32 product is the cheaper one.
    """
    rough = screen.rough
    first = None if cut is None else Pairs.above(rough, cut)
    if first is None or first.features.numel() < budget:
        wanted = budget + max(SLACK, round(SLACK_SHARE * budget))
        if wanted >= MANY * rough.numel():
            return None
        cut = kth_largest(rough, wanted).clamp_min(0)
        first = Pairs.above(rough, cut)
    assert cut is not None
    pairs, repeated = first, rough.new_zeros((), dtype=torch.int64)
    for _ in range(ROUNDS):
        if pairs.features.numel() > MANY * rough.numel():
            return None
        exact = screen.exact(pairs)
        if pairs.features.numel() < budget:
            least = exact.new_zeros(())  # there are not that many positive ones
        else:
            least = kth_largest(exact, budget).clamp_min(0)
        guess = pairs.entries(rough)
        enough = least - DEVIATIONS * largest_error(guess, exact, pairs, guess)
        if bool(enough >= cut):
            kept = true_places((exact >= least) & (exact > 0))
            return Chosen(pairs.at(kept), exact[kept], repeated)
        pairs = Pairs.above(rough, enough)
        added = pairs.entries(rough) <= cut[None]
        repeated = torch.bincount(pairs.tokens[added], minlength=len(rough)).count_nonzero()
        cut = enough
    return None


def choose_batch_largest(screen: Screen, budget: int) -> Chosen:
    """`choose_batch_top` for a GPU, whose host is not waited for: as many pairs as the budget, some perhaps below 0.

    Args:
        screen: the layer's.
        budget: how many; at most all.
    """
    rough = screen.rough
    proposed = min(budget + max(SLACK, round(SLACK_SHARE * budget)), rough.numel())
    candidates = Pairs.largest(rough, proposed)
    exact = screen.exact(candidates)
    best = torch.topk(exact, budget, sorted=False)
    kept = best.indices.sort().values
    guess = candidates.entries(rough)
    enough = best.values.amin().clamp_min(0) - DEVIATIONS * largest_error(guess, exact, candidates, guess)
    cut = guess.amin()
    doubtful = ~(enough >= cut) if proposed < rough.numel() else torch.zeros_like(cut, dtype=torch.bool)
    repeated = doubtful * (rough > enough[None]).any(1).sum().clamp_min(1)

    def settle(count: int) -> Chosen:
        every = screen.everything()
        pairs = Pairs.largest(every, budget)
        return Chosen(pairs, pairs.entries(every), repeated)

    return Chosen(candidates.at(kept), exact[kept], repeated, settle)


def choose_above(screen: Screen, threshold: Tensor) -> Chosen | None:
    """The pre-activations above a threshold.

    Args:
        screen: the layer's.
        threshold: `(F,)`, or a scalar.

    Returns:
        None if so many are near it that an fp32 product is the cheaper one.
    """
    rough = screen.rough
    threshold = threshold.to(screen.x.dtype)
    # where the rounding of x, W and the result is a random walk: no more than a first guess
    unit = torch.finfo(rough.dtype).eps / 2
    typical = screen.W.square().mean(0)
    margin = unit * (threshold.abs().amax() + torch.mv(screen.x.square(), typical).sqrt_())
    margin = (DEVIATIONS * margin)[:, None]
    if len(rough) >= 4 * SAMPLE:
        tokens = torch.arange(0, len(rough), SAMPLE, device=rough.device)
        told = _near(screen.of_tokens(tokens), threshold, margin[tokens])
        margin = margin if told is None else torch.maximum(margin, 1.5 * DEVIATIONS * told[3])
    repeated = rough.new_zeros((), dtype=torch.int64)
    for _ in range(ROUNDS):
        found = _near(screen, threshold, margin)
        if found is None:
            return None
        pairs, exact, limit, error = found
        enough = DEVIATIONS * error
        if bool((margin >= enough).all()) and bool(margin.isfinite().all()):
            kept = true_places(exact > limit)
            return Chosen(pairs.at(kept), exact[kept], repeated)
        repeated = (margin < enough).sum()
        margin = torch.maximum(margin, 1.5 * enough)
    return None


def _near(screen: Screen, threshold: Tensor, margin: Tensor) -> tuple[Pairs, Tensor, Tensor, Tensor] | None:
    """What lies above the threshold or up to a margin `(tokens, 1)` below it, by the screen.

    Returns:
        the pairs; `(pairs,)` their exact pre-activations; their thresholds, or the one; and the product's error near
        these. None if they are too many.
    """
    pairs = Pairs.from_mask(screen.rough > threshold - margin)
    if pairs.features.numel() > MANY * screen.rough.numel():
        return None
    exact = screen.exact(pairs)
    limit = threshold if threshold.dim() == 0 else threshold[pairs.features]
    guess = pairs.entries(screen.rough)
    return pairs, exact, limit, largest_error(guess, exact, pairs, guess - limit)


def nearest(candidates: int) -> int:
    """Of a token's candidates, how many lie near the cut: those that tell the product's error there."""
    return min(candidates, max(8, candidates // 2))


def largest_error(guess: Tensor, exact: Tensor, pairs: Pairs, above: Tensor) -> Tensor:
    """Root mean square of the product's error near the cut, on the pairs of the token where it is largest.

    Args:
        guess: `(pairs,)` what the product gives.
        exact: `(pairs,)` what it should be.
        pairs: which these are.
        above: `(pairs,)` how far each is above the cut, or up to a constant. In a token the far ones count less, by the
            square of their distance: a large code is rounded more, and no doubt of it matters. A token whose pairs are
            all far, since it is long, has nothing nearer and is told by these.

    Returns:
        a scalar; 0 without pairs.
    """
    if not exact.numel():
        return exact.new_zeros(())
    distance = above - above.amin()
    usual = kth_largest(distance, -(-distance.numel() // 2))[None]
    weight = torch.where(distance <= usual, 1.0, (usual / distance).square()).to(exact.dtype)
    square = (exact - guess.to(exact.dtype)).square_() * weight
    sums, weights = (
        square.new_zeros(pairs.n_tokens).index_add_(0, pairs.tokens, values) for values in (square, weight)
    )
    # few pairs of a token say little of its error
    worst = torch.where(pairs.counts >= 8, sums / weights, sums.new_zeros(())).amax()
    return torch.maximum(worst, square.sum() / weight.sum()).sqrt_()
