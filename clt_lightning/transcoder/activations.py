"""Activation functions: which pre-activations become codes, and with what gradient.

Every activation answers two questions on the pre-activations `(tokens, F)` of one layer: `select` (without gradients)
names the pairs that can matter, `values` turns their pre-activations into codes, differentiably. The dense reference
(`dense`) is the same two steps on a full mask, so that both paths share one definition.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clt_lightning.core.arguments import number, whole
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.codes import Pairs
from clt_lightning.transcoder.screening import Chosen, Screen, choose_above, choose_batch_top, choose_top
from clt_lightning.transcoder.top import top_indices


class Activation(nn.Module):
    """Base class. An activation is built once for its transcoder, which then owns its parameters and buffers."""

    #: whether running statistics of the training batches are kept
    tracking = True

    @property
    def most_active(self) -> int | None:
        """The largest number of codes that tokens have on average, where the activation bounds it."""
        return None

    @contextmanager
    def not_tracking(self) -> Iterator[None]:
        """While active, what is selected leaves no trace in running statistics (BatchTopK's threshold)."""
        before, self.tracking = self.tracking, False
        try:
            yield
        finally:
            self.tracking = before

    def build(self, n_layers: int, n_features: int) -> None:
        """Creates parameters and buffers for `n_layers` x `n_features` features. Called by the transcoder."""

    def config(self) -> dict[str, Any]:
        """`{"class_path": name, "init_args": arguments}`: what builds the same activation again."""
        return {"class_path": type(self).__name__, "init_args": self.init_args()}

    def init_args(self) -> dict[str, Any]:
        return {}

    def select(self, pre: Tensor, layer: int) -> Pairs | Tensor:
        """What can be active or get a gradient: pairs, or a `(tokens, F)` mask where their number is not bounded.

        Args:
            pre: `(tokens, F)`, detached.
            layer: which layer's pre-activations these are.
        """
        raise NotImplementedError

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        """The pairs that `select` would name, from a product in low precision, and their exact pre-activations.

        Args:
            screen: of one layer.
            layer: which.

        Returns:
            None where an fp32 product is to be made instead; activations that know of no better way need not override.
        """
        return None

    def values(self, pre: Tensor, features: Tensor | None, layer: int) -> Tensor:
        """Codes of selected pre-activations, differentiable.

        Args:
            pre: `(pairs,)` pre-activations of `features (pairs,)`, or `(tokens, F)` with `features=None`.
            features: the feature of each entry; None for all of them.
            layer: which layer's pre-activations these are.
        """
        raise NotImplementedError


class ReLU(Activation):
    """max(pre, 0). Sparsity comes from the loss (L1 or tanh)."""

    def select(self, pre: Tensor, layer: int) -> Pairs | Tensor:
        return pre > 0

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        return choose_above(screen, screen.x.new_zeros(()))

    def values(self, pre: Tensor, features: Tensor | None, layer: int) -> Tensor:
        return torch.relu(pre)


class TopK(Activation):
    """The k largest positive pre-activations of each token (ReLU-Top-k; Gao et al. 2024).

    Negative pre-activations never pass: a token with fewer than k positive ones has fewer than k codes.

    Args:
        k: number of features a token may use in each layer. Larger than the dictionary means all of it.
    """

    def __init__(self, k: int = 64) -> None:
        super().__init__()
        self.k = whole(f"{type(self).__name__}: k", k, 1)

    @property
    def most_active(self) -> int | None:
        return self.k

    def init_args(self) -> dict[str, Any]:
        return {"k": self.k}

    def select(self, pre: Tensor, layer: int) -> Pairs:
        k = min(self.k, pre.shape[1])
        return Pairs.rectangular(top_indices(pre, k), pre.shape[1])

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        return choose_top(screen, min(self.k, screen.rough.shape[1]))

    def values(self, pre: Tensor, features: Tensor | None, layer: int) -> Tensor:
        return torch.relu(pre)


class AbsTopK(TopK):
    """The k largest pre-activations of each token by absolute value; the sign is kept.

    Args:
        k: number of features a token uses in each layer. Larger than the dictionary means all of it.
    """

    def select(self, pre: Tensor, layer: int) -> Pairs:
        return super().select(pre.abs(), layer)

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        return choose_top(screen, min(self.k, screen.rough.shape[1]), magnitude=True)

    def values(self, pre: Tensor, features: Tensor | None, layer: int) -> Tensor:
        return pre


#: Share of a batch's winners below the stored threshold
_MARGIN = 0.02
#: Of so many tokens one serves to guess BatchTopK's cut
_SAMPLE = 17


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
        momentum: weight of the past in the running mean of the threshold. While features are learned the cut falls, and
            a mean over 100 batches (0.99) stays above it: L0 is then 11.1 where k is 12, after 500 steps on the demo.
    """

    threshold: Tensor
    updates: Tensor

    def __init__(self, k: int = 64, momentum: float = 0.95, tilt: float = 0.0) -> None:
        super().__init__()
        self.k, self.momentum = whole("BatchTopK: k", k, 1), number("BatchTopK: momentum", momentum)
        self.tilt = number("BatchTopK: tilt", tilt)
        if not 0 <= momentum < 1:
            raise UserError(f"BatchTopK: momentum must lie in [0, 1), got {momentum}")
        if not -1 < tilt < 1:
            raise UserError(f"BatchTopK: tilt must lie between -1 and 1, got {tilt}")
        self._shares = [1.0]

    @property
    def most_active(self) -> int | None:
        return self.k if self.training else None  # a stored threshold bounds nothing

    def init_args(self) -> dict[str, Any]:
        return {"k": self.k, "momentum": self.momentum, "tilt": self.tilt}

    def budget(self, layer: int, n_tokens: int) -> int:
        """How many codes a layer may have in a training batch of so many tokens."""
        return max(1, round(self.k * self._shares[layer] * n_tokens)) if n_tokens else 0

    def build(self, n_layers: int, n_features: int) -> None:
        last = max(n_layers - 1, 1)
        self._shares = [1 + self.tilt * (1 - 2 * layer / last) if n_layers > 1 else 1.0 for layer in range(n_layers)]
        self.register_buffer("threshold", torch.zeros(n_layers))
        # the mean of the first few steps is a plain one: the early thresholds move fast
        self.register_buffer("updates", torch.zeros(n_layers, dtype=torch.int64))

    def select(self, pre: Tensor, layer: int) -> Pairs | Tensor:
        if not self.training:
            return (pre > self.threshold[layer]) & (pre > 0)
        budget = self.budget(layer, pre.shape[0])
        pairs = self._above_guess(pre, layer)
        if pairs is None:
            pairs = Pairs.from_mask(self._mask(pre, budget))
        if self.tracking:  # the cascade does not: it need not gather what it kept
            self.track(pre[pairs.tokens, pairs.features], layer)
        return pairs

    def _above_guess(self, pre: Tensor, layer: int) -> Pairs | None:
        """The winners among all entries above a guessed cut, several times faster; None if these are too few."""
        guess, budget = self._guess(pre, layer), self.budget(layer, pre.shape[0])
        if guess is None:
            return None
        pairs = Pairs.from_mask(pre > guess)
        if pairs.features.numel() < budget:
            return None
        values = pre[pairs.tokens, pairs.features]
        return pairs.keep(values >= torch.topk(values, budget, sorted=False).values.min())

    def _guess(self, pre: Tensor, layer: int) -> Tensor | None:
        """A value that likely more than the budget lie above; None where it is not worth guessing.

        The cut of every 17th token (17 divides no usual number of positions) with a budget a third larger.
        """
        sample = pre[::_SAMPLE]
        share = self.budget(layer, sample.shape[0])
        if share < 64 or 4 * share > 3 * sample.numel():  # too few for a good guess, or so many that it saves nothing
            return None
        return torch.topk(sample.flatten(), share + share // 3, sorted=False).values.min().clamp(min=0)

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        if not self.training:
            return choose_above(screen, self.threshold[layer].clamp_min(0))
        chosen = choose_batch_top(screen, self.budget(layer, len(screen.rough)), self._guess(screen.rough, layer))
        if chosen is not None and self.tracking:
            self.track(chosen.values, layer)
        return chosen

    def _mask(self, pre: Tensor, budget: int) -> Tensor:
        if budget >= pre.numel():
            return pre > 0
        # Candidates per row first: a token with more than 4 times its share is rare, and is found by the check below.
        row = min(pre.shape[1], -(-4 * budget // pre.shape[0]))
        candidates = torch.topk(pre, row, dim=1, sorted=False).values
        cut = torch.topk(candidates.flatten(), budget, sorted=True).values[-1]
        if row < pre.shape[1] and bool((candidates.min(dim=1).values > cut).any()):
            cut = torch.topk(pre.flatten(), budget, sorted=True).values[-1]
        return (pre >= cut) & (pre > 0)

    @torch.no_grad()
    def track(self, kept: Tensor, layer: int) -> None:
        """Moves the stored threshold of a layer towards the cut of a batch.

        Args:
            kept: `(winners,)` pre-activations that the batch kept.
            layer: which layer's.
        """
        if not self.tracking or not kept.numel():
            return
        cut = torch.kthvalue(kept, 1 + int(_MARGIN * kept.numel())).values
        n = self.updates[layer]
        momentum = torch.minimum(n / (n + 1.0), n.new_tensor(self.momentum, dtype=torch.float64)).to(self.threshold)
        self.threshold[layer] = momentum * self.threshold[layer] + (1 - momentum) * cut.to(self.threshold)
        self.updates[layer] += 1

    def values(self, pre: Tensor, features: Tensor | None, layer: int) -> Tensor:
        return torch.relu(pre)


class _Jump(torch.autograd.Function):
    """`pre * [pre > threshold]` with the rectangle-kernel estimate of the threshold's gradient."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        pre, threshold = ctx.saved_tensors
        window = ((pre - threshold).abs() < ctx.bandwidth / 2).to(grad.dtype)
        return grad * (pre > threshold), -grad * threshold * window / ctx.bandwidth, None


class JumpReLU(Activation):
    """Codes are the pre-activations above a threshold that each feature learns (Rajamanoharan et al. 2024).

    The threshold's gradient is the straight-through estimate with a rectangle kernel; it needs the code gradient also
    of features just below their threshold, so these are selected as pairs with code 0. The learned threshold is the
    same in training and evaluation.

    Args:
        threshold: initial threshold of every feature, in units of the pre-activation. Must be positive.
        bandwidth: width of the kernel around the threshold, in the same units.
    """

    log_threshold: nn.Parameter

    def __init__(self, threshold: float = 0.03, bandwidth: float = 0.05) -> None:
        super().__init__()
        self.initial_threshold = number("JumpReLU: threshold", threshold)
        self.bandwidth = number("JumpReLU: bandwidth", bandwidth)
        for name, value in (("threshold", threshold), ("bandwidth", bandwidth)):
            if not value > 0:
                raise UserError(f"JumpReLU: {name} must be positive, got {value}")

    def init_args(self) -> dict[str, Any]:
        return {"threshold": self.initial_threshold, "bandwidth": self.bandwidth}

    def build(self, n_layers: int, n_features: int) -> None:
        self.log_threshold = nn.Parameter(torch.full((n_layers, n_features), math.log(self.initial_threshold)))

    @property
    def threshold(self) -> Tensor:
        """`(layers, F)`, positive."""
        return self.log_threshold.exp()

    def select(self, pre: Tensor, layer: int) -> Pairs | Tensor:
        return pre > self._limit(layer, pre.dtype)

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        return choose_above(screen, self._limit(layer, screen.x.dtype))

    def _limit(self, layer: int, dtype: torch.dtype) -> Tensor:
        """`(F,)`: what lies above is selected."""
        # The window below the threshold holds codes of 0 that matter to the threshold's gradient only
        margin = self.bandwidth / 2 if self.training else 0.0
        return self.log_threshold[layer].detach().exp().to(dtype) - margin

    def values(self, pre: Tensor, features: Tensor | None, layer: int) -> Tensor:
        threshold = self.log_threshold[layer].exp().to(pre.dtype)
        threshold = threshold.expand_as(pre) if features is None else threshold[features]
        codes: Tensor = _Jump.apply(pre, threshold, self.bandwidth)
        return codes


def dense(activation: Activation, pre: Tensor, layer: int) -> Tensor:
    """Plain dense reference: codes `(tokens, F)` of pre-activations `(tokens, F)`, differentiable."""
    selected = activation.select(pre.detach(), layer)
    if isinstance(selected, Pairs):
        mask = torch.zeros_like(pre, dtype=torch.bool)
        mask[selected.tokens, selected.features] = True
    else:
        mask = selected
    return torch.where(mask, activation.values(pre, None, layer), pre.new_zeros(()))


ACTIVATIONS: dict[str, type[Activation]] = {c.__name__: c for c in (ReLU, TopK, AbsTopK, BatchTopK, JumpReLU)}


def from_config(config: dict[str, Any]) -> Activation:
    """Builds an activation from `{"class_path": ..., "init_args": ...}`.

    Raises:
        UserError: unknown class, or arguments that it does not take.
    """
    if not isinstance(config, dict) or "class_path" not in config:
        raise UserError(f"an activation is {{class_path: ..., init_args: ...}}, got {config!r}")
    name = str(config["class_path"]).rsplit(".", 1)[-1]
    if name not in ACTIVATIONS:
        raise UserError(f"unknown activation {config['class_path']!r}; there are {', '.join(ACTIVATIONS)}")
    arguments = config.get("init_args") or {}
    known = list(inspect.signature(ACTIVATIONS[name]).parameters)
    if not isinstance(arguments, dict) or set(arguments) - set(known):
        raise UserError(f"activation {name} takes {', '.join(known) or 'no arguments'}; got init_args {arguments!r}")
    try:
        return ACTIVATIONS[name](**arguments)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"activation {name}: {arguments!r}: {error}") from error
