"""The sparse-decoding prior: a spike-and-slab lasso on the groups of the decoder, after Moran et al. (2110.10804).

For a feature f of layer i, `g[j] = |W_dec[i -> j, f]|` over the root mean square of the feature's own groups. Whether
it belongs to the slab (it is there) or to the spike (it is not) has the probability, given theta[i, j],

    p*[f, j] = theta l1 exp(-l1 g) / (theta l1 exp(-l1 g) + (1 - theta) l0 exp(-l0 g)),

and after each step `theta[i, j] = (sum_f p* + a - 1) / (a + b + F - 2)`. These are the densities with their factors
l1 and l0; the paper's code leaves them out, which moves the cut by log(l0 / l1) / (l0 - l1). The group is then
shortened by `lr * coefficient * sqrt(d_out) * (l1 p* + l0 (1 - p*))`, and is exactly 0 where it was shorter than that.

**Scale.** A penalty on `|W_dec|` alone is evaded by smaller decoders and larger encoders. Here nothing can be gained in
that way: p* reads relative norms, and the threshold is measured in Adam's steps, whose length does not depend on the
scale of the weights either (sqrt(d_out) of them are the longest step of a group). So encoders, and the thresholds of
ReLU and JumpReLU, need not be touched: dividing a feature's decoder by c and multiplying its encoder, bias and
threshold by c changes neither its p* nor which of its groups outlive the optimizer's steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clt_lightning.core.arguments import check_fields
from clt_lightning.training.priors.base import (
    WeightPrior,
    check_ranges,
    group_measures,
    need_length,
    need_targets,
    own_features,
    whole_features,
)
from clt_lightning.training.priors.layer import LayerState, Rates, beta_mean, slab_and_spike_rules
from clt_lightning.transcoder.clt import CrossLayerTranscoder

_LOOK = 5  # steps between looks at how many groups are left


@dataclass
class SparseDecoding(WeightPrior):
    """Each feature writes to few layers, found while it trains: groups of the decoder become exactly zero.

    Args:
        coefficient: weight of the penalty, in Adam's steps: with `coefficient * lambda0` near 1 a group of the spike
            must be pulled by nearly all of its weights, all the time, to stay.
        lambda0: rate of the spike, for groups that are not there.
        lambda1: rate of the slab, for groups that are; from 0 (excluded) to lambda0.
        a: of the beta prior on the inclusion probabilities theta.
        b: of the same; null: the number of features.
        start: share of the run before the penalty begins: decoders start at zero, and must first have grown.
        warmup_fraction: share of the run over which the spike's rate rises from `lambda1` to `lambda0` then.
        warmup_steps: the same in optimizer steps, in its place.
        refit: share of the run at its end without a penalty: zeros stay zero, and what is left is no longer shortened.
        until: the refit begins before that where so small a share of all groups is left; null: it does not.
        lazy: with an optimizer that names the rows which it updates (RowSparseAdam), the others' steps are added up,
            and made when the row is next read or updated, to the same weights; false makes them at once.
    """

    name: ClassVar[str] = "sparse_decoding"
    coefficient: float = 0.1
    lambda0: float = 10.0
    lambda1: float = 0.5
    a: float = 1.0
    b: float | None = None
    start: float = 0.3
    warmup_fraction: float = 0.1
    warmup_steps: int = 0
    refit: float = 0.4
    until: float | None = None
    lazy: bool = True

    def __post_init__(self) -> None:
        check_fields(self, self.place)
        check_ranges(
            self.place,
            *slab_and_spike_rules(self),
            ("refit", self.refit, 0 <= self.refit < 1 - self.start, "from 0 to below 1 - start"),
            ("until", self.until, self.until is None or 0 < self.until <= 1, "above 0 and at most 1, or null"),
        )

    # -- the run -----------------------------------------------------------------------------------------------------
    def attach(self, clt: CrossLayerTranscoder) -> None:
        """Takes the transcoder, whose decoders must be of several targets.

        Raises:
            UserError: its features write to one layer only; or a checkpoint's state is of another shape.
        """
        need_targets(self, clt)
        self.clt = clt
        self.layers = [LayerState.fresh(W) for W in clt.W_dec]
        self.slab_sum = self.spike_sum = 0.0
        self.is_done = False
        self.take_waiting()
        self._hook = clt.register_state_dict_pre_hook(lambda *_: self.catch_up())  # type: ignore[no-untyped-call]
        clt.before_read = self._before_read

    def detach(self) -> None:
        if hasattr(self, "_hook"):
            self.catch_up()
            for W in self.clt.W_dec:
                W.data.add_(0.0)  # no -0: what a file leaves out comes back to the bit
            self._hook.remove()
            self.clt.before_read = None
            del self._hook

    def check_length(self, max_steps: int) -> None:
        need_length(self, max_steps)

    def rates(self, step: int, max_steps: int) -> Rates | None:
        """The rates at an optimizer step; None before the penalty begins and while the support is refitted."""
        if self.is_done or step >= self._last(max_steps):
            return None
        return Rates.rising(self, step, max_steps, self.adapts)

    #: whether each group's rate follows its inclusion probability; if not, all have the spike's
    adapts: ClassVar[bool] = True

    @torch.no_grad()
    def after_step(self, step: int, max_steps: int, lr: float) -> None:
        rates = self.rates(step, max_steps)
        if rates is None:
            if self.is_done or (step >= self._last(max_steps) and self.refit):
                self._hold()
            return
        unit = lr * self.coefficient * math.sqrt(self.clt.d_out)
        before = (self.slab_sum, self.spike_sum)
        self.slab_sum += unit * rates.slab
        self.spike_sum += unit * rates.spike
        now = (self.slab_sum, self.spike_sum)
        first = step == round(self.start * max_steps)
        for layer, W in zip(self.layers, self.clt.W_dec):
            if W.shape[1] < 2:
                continue
            # the first one looks at all rows: those that never move again have a p as well
            rows = None if first else getattr(W, "updated_rows", None)
            layer.step(W.data, rows, rates, before, now)
        self._update_theta()
        if not self.lazy:
            self.catch_up()
        if self.until is not None and step % _LOOK == 0:
            self.catch_up()
            self.is_done = float(self.measures()["groups_share"]) <= self.until

    @torch.no_grad()
    def catch_up(self) -> None:
        for i in range(len(self.layers)):
            self._before_read(i, None)

    @torch.no_grad()
    def _before_read(self, layer: int, rows: Tensor | None) -> None:
        state = self.layers[layer]
        if state.is_behind:
            state.settle(self.clt.W_dec[layer].data, rows, (self.slab_sum, self.spike_sum))

    def _last(self, max_steps: int) -> int:
        return round((1 - self.refit) * max_steps)

    def _hold(self) -> None:
        self.catch_up()
        for layer, W in zip(self.layers, self.clt.W_dec):
            layer.hold(W.data, getattr(W, "updated_rows", None))

    def _update_theta(self) -> None:
        sums = self.clt.sum_over_shards(torch.cat([layer.p.sum(0) for layer in self.layers]))
        theta = beta_mean(sums, sums.new_tensor(self.clt.n_features), self.a, self.b)
        for layer, part in zip(self.layers, theta.split([layer.theta.numel() for layer in self.layers])):
            layer.theta = part

    @torch.no_grad()
    def measures(self) -> dict[str, Tensor]:
        """`groups`: mean number of groups of the features that have any; `groups_share`: of all that could be."""
        return group_measures(self.clt, [layer.alive for layer in self.layers])

    # -- checkpoints -------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        self.catch_up()
        return {
            "is_done": self.is_done,
            "theta": [layer.theta.cpu() for layer in self.layers],
            "p": [whole_features(self.clt, layer.p).cpu() for layer in self.layers],
            "alive": [whole_features(self.clt, layer.alive).cpu() for layer in self.layers],
        }

    def take(self, state: dict[str, Any]) -> None:
        self.is_done = bool(state["is_done"])
        for i, layer in enumerate(self.layers):
            layer.theta = state["theta"][i].to(layer.theta)
            for name in ("p", "alive"):
                setattr(layer, name, own_features(self, self.clt, state[name][i], getattr(layer, name)))
