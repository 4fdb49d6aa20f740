"""BatchTopK: the largest of a batch, so that tokens share a budget."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clt_lightning.core.arguments import number, whole
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.activations.base import Activation
from clt_lightning.transcoder.activations.exchange import Exchange
from clt_lightning.transcoder.order import kth_largest
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.screening import Chosen, Screen, choose_above, choose_batch_largest, choose_batch_top

#: Share of a batch's winners below the stored threshold
_MARGIN = 0.02
#: Of so many tokens one serves to guess BatchTopK's cut
_SAMPLE = 17


def _searched(pre: Tensor) -> bool:
    """Whether the winners are searched for; a GPU takes a fixed number of them, for which its host need not wait."""
    return not pre.is_cuda


class BatchTopK(Activation):
    """The `k * tokens` largest positive pre-activations of a batch, so that tokens share a budget (Bussmann et al.
    2024).

    In training the cut is made per layer and batch, and a running mean of the value that 98 % of the kept ones reach is
    stored. Evaluation uses that threshold, so that a token's codes do not depend on the batch it comes in. The last
    fiftieth is a margin: one threshold for all batches lets through more than k in some, and L0 shall not exceed k.

    Layers need not share alike. An error of an early layer passes through all later ones, and of the last layer's
    tokens only [CLS] is read: with every MLP replaced the same L0 loses less when early layers have more of it
    (docs/training.md).

    Args:
        k: mean number of features that a token uses per layer.
        tilt: how far the budget leans towards early layers: layer l of L has `k (1 + tilt (1 - 2 l / (L - 1)))`, whose
            mean over layers is k. 0: all alike; 0.4: from 1.4 k down to 0.6 k; negative: late layers have more.
        cls_weight: what a [CLS] token's pre-activations are multiplied by where codes are chosen, nowhere else. What
            early MLPs write at [CLS] is small beside what they write at patches, and so wins few codes; yet the
            embedding is read there. One token of an image has more of them then, and the budget stays the same.
        momentum: weight of the past in the running mean of the threshold. While features are learned the cut falls, and
            a mean over 100 batches (0.99) stays above it: L0 is then 11.1 where k is 12, after 500 steps on the demo.
    """

    scope = "batch"
    threshold: Tensor
    updates: Tensor

    def __init__(self, k: int = 64, momentum: float = 0.95, tilt: float = 0.0, cls_weight: float = 1.0) -> None:
        super().__init__()
        self.k, self.momentum = whole("BatchTopK: k", k, 1), number("BatchTopK: momentum", momentum)
        self.tilt = number("BatchTopK: tilt", tilt)
        if not 0 <= momentum < 1:
            raise UserError(f"BatchTopK: momentum must lie in [0, 1), got {momentum}")
        if not -1 < tilt < 1:
            raise UserError(f"BatchTopK: tilt must lie between -1 and 1, got {tilt}")
        self.cls_weight = number("BatchTopK: cls_weight", cls_weight)
        if not cls_weight > 0:
            raise UserError(f"BatchTopK: cls_weight must be above 0, got {cls_weight}")
        self._shares = [1.0]

    @property
    def most_active(self) -> int | None:
        return self.k if self.training else None  # a stored threshold bounds nothing

    def budget(self, layer: int, n_tokens: int) -> int:
        """How many codes a layer may have in a training batch of so many tokens."""
        return max(1, round(self.k * self._shares[layer] * n_tokens)) if n_tokens else 0

    def build(self, n_layers: int, n_features: int) -> None:
        last = max(n_layers - 1, 1)
        self._shares = [1 + self.tilt * (1 - 2 * layer / last) if n_layers > 1 else 1.0 for layer in range(n_layers)]
        self.register_buffer("threshold", torch.zeros(n_layers))
        # the mean of the first few steps is a plain one: the early thresholds move fast
        self.register_buffer("updates", torch.zeros(n_layers, dtype=torch.int64))

    def select(self, pre: Float[Tensor, "tokens features"], layer: int) -> Pairs | Bool[Tensor, "tokens features"]:
        if not self.training:
            cut = self.threshold[layer].clamp_min(0)
            # a cut of 0 may leave half of all, which are better held densely
            return Pairs.above(pre, cut) if _searched(pre) and bool(cut > 0) else pre > cut[None]
        budget = self.budget(layer, pre.shape[0])
        if not _searched(pre):
            pairs = Pairs.largest(pre, min(budget, pre.numel()))
        else:
            found = self._above_guess(pre, layer)
            pairs = Pairs.from_mask(self._mask(pre, budget)) if found is None else found
        if self.tracking:  # the cascade does not: it need not gather what it kept
            self.track(pairs.entries(pre), layer)
        return pairs

    def _above_guess(self, pre: Tensor, layer: int) -> Pairs | None:
        """The winners among all entries above a guessed cut, several times faster; None if these are too few."""
        guess, budget = self._guess(pre, layer), self.budget(layer, pre.shape[0])
        if guess is None:
            return None
        pairs = Pairs.above(pre, guess)
        if pairs.features.numel() < budget:
            return None
        values = pairs.entries(pre)
        return pairs.keep(values >= kth_largest(values, budget))

    def _guess(self, pre: Tensor, layer: int) -> Tensor | None:
        """A value that likely more than the budget lie above; None where it is not worth guessing.

        The cut of every 17th token (17 divides no usual number of positions) with a budget a third larger.
        """
        sample = pre[::_SAMPLE]
        share = self.budget(layer, sample.shape[0])
        if share < 64 or 4 * share > 3 * sample.numel():  # too few for a good guess, or so many that it saves nothing
            return None
        return kth_largest(sample, share + share // 3).clamp(min=0)

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        if not self.training:
            return choose_above(screen, self.threshold[layer].clamp_min(0))
        budget = self.budget(layer, len(screen.rough))
        chosen: Chosen | None
        if not _searched(screen.rough):
            chosen = choose_batch_largest(screen, min(budget, screen.rough.numel()))
        else:
            chosen = choose_batch_top(screen, budget, self._guess(screen.rough, layer))
        if chosen is not None and self.tracking:
            self.track(chosen.values, layer)
        return chosen

    def select_part(
        self, pre: Float[Tensor, "tokens width"], layer: int, exchange: Exchange
    ) -> Pairs | Bool[Tensor, "tokens width"]:
        if not self.training:
            return self.select(pre, layer)
        winners = exchange.largest(pre, self.budget(layer, pre.shape[0]))
        self.track(winners[winners > 0], layer)
        return (pre >= winners.min()) & (pre > 0) if winners.numel() else pre > 0

    def choose_part(self, screen: Screen, layer: int, exchange: Exchange) -> Chosen | None:
        if not self.training:
            return self.choose(screen, layer)
        found = exchange.screen_largest(screen, self.budget(layer, len(screen.rough)))
        if found is None:
            return None
        chosen, winners = found
        self.track(winners[winners > 0], layer)
        return chosen

    def _mask(self, pre: Tensor, budget: int) -> Tensor:
        if budget >= pre.numel():
            return pre > 0
        # Candidates per row first: a token with more than 4 times its share is rare, and is found by the check below.
        row = min(pre.shape[1], -(-4 * budget // pre.shape[0]))
        candidates = torch.topk(pre, row, dim=1, sorted=False).values
        cut = kth_largest(candidates, budget)
        if row < pre.shape[1] and bool((candidates.min(dim=1).values > cut).any()):
            cut = kth_largest(pre, budget)
        return (pre >= cut) & (pre > 0)

    @torch.no_grad()
    def track(self, kept: Float[Tensor, " winners"], layer: int) -> None:
        """Moves the stored threshold of a layer towards the cut of a batch.

        Args:
            kept: `(winners,)` pre-activations that the batch kept; on a GPU as many as the budget.
            layer: which layer's.
        """
        if not self.tracking or not kept.numel():
            return
        n = self.updates[layer]
        if _searched(kept):
            cut = kth_largest(kept, kept.numel() - int(_MARGIN * kept.numel()))
            counted: Tensor | int = 1
        else:  # some may be no code, how many the host does not know
            positive = (kept > 0).sum()
            place = positive - (_MARGIN * positive).long() - 1
            cut = kept.sort(descending=True).values.gather(0, place.clamp_min(0)[None])[0]
            counted = (positive > 0).to(n.dtype)
            cut = torch.where(positive > 0, cut, self.threshold[layer].to(cut))
        momentum = (n / (n + 1.0)).double().clamp_max(self.momentum).to(self.threshold)
        self.threshold[layer] = momentum * self.threshold[layer] + (1 - momentum) * cut.to(self.threshold)
        self.updates[layer] += counted

    def values(
        self,
        pre: Float[Tensor, " pairs"] | Float[Tensor, "tokens features"],
        features: Int[Tensor, " pairs"] | None,
        layer: int,
    ) -> Float[Tensor, " pairs"] | Float[Tensor, "tokens features"]:
        return torch.relu(pre)
