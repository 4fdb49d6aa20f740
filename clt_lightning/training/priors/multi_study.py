"""A prior on use: features of few data sets, found while they train on several.

After multi-study factor analysis (Moran & Krishnan, 2601.18128), whose factors are shared by all studies or specific to
some: a spike-and-slab lasso on (feature, set). The use of feature f on set m is the root mean square of its codes on
the set's tokens, over that of all sets: `g[f, m]` is 1 on a feature's average set. Given theta[l, m], f is a feature
of m with the probability

    p*[f, m] = theta l1 exp(-l1 g) / (theta l1 exp(-l1 g) + (1 - theta) l0 exp(-l0 g)),

and after each step `theta[l, m] = (sum_f p* + a - 1) / (a + b + F - 2)`, over the F features of the layer that are in
use. The term of the loss is an L1 whose rate is the pair's own,

    mean over layers, tokens t of sum_f (l1 p*[f, m(t)] + l0 (1 - p*[f, m(t)])) |z_f| |W_dec_f|.

It is the paper's idea on codes in the place of loadings: nothing of its theorem carries over.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.parallel import ShardedTranscoder
from clt_lightning.training.losses.base import LossInputs
from clt_lightning.training.priors.base import Prior, check_ranges, need_length, own_features, whole_features
from clt_lightning.training.priors.layer import Rates, beta_mean, slab_and_spike_rules, spike_and_slab
from clt_lightning.transcoder.clt import CrossLayerTranscoder
from clt_lightning.transcoder.support import relative_norms


@dataclass
class MultiStudy(Prior):
    """Each feature is of few data sets, found while it trains on several: its codes on the others are pushed to zero.

    Args:
        coefficient: weight in the loss.
        lambda0: rate of the spike, for sets that a feature is not of.
        lambda1: rate of the slab, for sets that it is of; from 0 (excluded) to lambda0.
        a: of the beta prior on the inclusion probabilities theta.
        b: of the same; null: the number of features in use.
        start: share of the run before the penalty begins: features must first have become something.
        warmup_fraction: share of the run over which the spike's rate rises from `lambda1` to `lambda0` then.
        warmup_steps: the same in optimizer steps, in its place.
        memory: use is a mean over about 1 / (1 - memory) steps.
    """

    name: ClassVar[str] = "multi_study"
    needs: ClassVar[Collection[str]] = ("codes", "studies")
    coefficient: float = 0.03
    lambda0: float = 10.0
    lambda1: float = 0.5
    a: float = 1.0
    b: float | None = None
    start: float = 0.3
    warmup_fraction: float = 0.1
    warmup_steps: int = 0
    memory: float = 0.99

    def __post_init__(self) -> None:
        check_fields(self, self.place)
        check_ranges(
            self.place,
            *slab_and_spike_rules(self),
            ("memory", self.memory, 0 <= self.memory < 1, "from 0 to below 1"),
        )

    # -- the run -----------------------------------------------------------------------------------------------------
    def attach(self, clt: CrossLayerTranscoder) -> None:
        """Takes the transcoder.

        Raises:
            UserError: the run's data are not several sets; or a checkpoint's state is of another shape.
        """
        n = len(self.studies)
        if n < 2:
            raise UserError(
                f"{type(self).__name__} is for several data sets at once, and the run's data are "
                f"{'one set' if n == 0 else f'the set {self.studies[0]}'}: take data.class_path Studies (docs/data.md)"
            )
        self.clt = clt
        shape: tuple[int, int, int] = (len(clt.W_enc), clt.W_enc[0].shape[0], n)
        made: dict[str, Any] = {"dtype": torch.float32, "device": clt.b_dec.device}
        self.squares, self.tokens = torch.zeros(shape, **made), torch.zeros(n, **made)
        self.theta, self.p = torch.full((shape[0], n), 0.5, **made), torch.ones(shape, **made)
        self._new_squares, self._new_tokens = torch.zeros_like(self.squares), torch.zeros_like(self.tokens)
        self._rates: Rates | None = None
        self.steps = 0
        self.take_waiting()

    def detach(self) -> None:
        """Nothing waits."""

    def check_length(self, max_steps: int) -> None:
        need_length(self, max_steps)
        self._rates = self.rates(self.steps, max_steps)

    def rates(self, step: int, max_steps: int) -> Rates | None:
        """The rates at an optimizer step; None before the penalty begins."""
        return Rates.rising(self, step, max_steps)

    def value(self, given: LossInputs) -> Tensor:
        """Without the coefficient, of this process's features; notes how the tokens' sets use them."""
        codes, studies, norms = given.codes, given.studies, given.decoder_norms
        if studies.device.type == "cpu" and studies.numel():  # elsewhere a look would wait for the device
            for found in (int(studies.max()), int(studies.min())):
                if not 0 <= found < len(self.studies):
                    raise UserError(
                        f"a batch's study is {found}, and there are {len(self.studies)} data sets, numbered from 0"
                    )
        learns = torch.is_grad_enabled()
        if learns:
            self._new_tokens.index_add_(0, studies, torch.ones_like(studies, dtype=self._new_tokens.dtype))
        total = norms.new_zeros(())
        rates = self._rates
        for layer in range(codes.n_layers):
            pairs, values = codes.layer(layer)
            place = pairs.features * len(self.studies) + studies[pairs.tokens]
            if learns:
                squares = self._new_squares[layer].view(-1)
                squares.index_add_(0, place, values.detach().to(squares).square())
            if rates is not None:
                p = self.p[layer].view(-1)[place]
                rate = rates.slab * p + rates.spike * (1 - p)
                total = total + (rate * values.abs() * norms[layer][pairs.features]).sum()
        return total / (codes.n_tokens * codes.n_layers)

    @torch.no_grad()
    def after_step(self, step: int, max_steps: int, lr: float) -> None:
        self._add_up()
        self.steps = step + 1
        rates = self.rates(self.steps, max_steps)
        if rates is not None:
            self._infer(rates)
        self._rates = rates

    def _add_up(self) -> None:
        """Takes the step's tokens, of all processes, into the running sums."""
        squares, tokens = self._new_squares, self._new_tokens
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            clt = self.clt
            if isinstance(clt, ShardedTranscoder):  # processes with the same tokens hold other features
                whole = squares.new_zeros(squares.shape[0], clt.n_features, squares.shape[2])
                whole[:, clt.own] = squares
                dist.all_reduce(whole)
                squares = whole[:, clt.own]
                tokens = tokens / clt.shards.size
            else:
                dist.all_reduce(squares)
            dist.all_reduce(tokens)
        self.squares.mul_(self.memory).add_(squares)
        self.tokens.mul_(self.memory).add_(tokens)
        self._new_squares.zero_()
        self._new_tokens.zero_()

    def _infer(self, rates: Rates) -> None:
        used = self.squares.sum(2) > 0
        self.p = spike_and_slab(self.use(), self.theta[:, None], rates).masked_fill(~used[..., None], 1.0)
        sums = torch.cat([(self.p * used[..., None]).sum(1), used.sum(1, keepdim=True).to(self.p)], 1)
        sums = self.clt.sum_over_shards(sums)
        self.theta = beta_mean(sums[:, :-1], sums[:, -1:], self.a, self.b)

    def use(self) -> Tensor:
        """`(L, F, sets)`: root mean square of each feature's codes on each set, over that of all its sets."""
        strengths = (self.squares / self.tokens.clamp_min(1e-30)).sqrt()
        return relative_norms(strengths.flatten(0, 1)).view_as(strengths)

    @torch.no_grad()
    def measures(self) -> dict[str, Tensor]:
        """`sets`: mean number of sets that a feature in use is of; `one_set`: share of them that are of one alone."""
        used = self.squares.sum(2) > 0
        of = (self.p > 0.5) & used[..., None]
        counts = torch.stack([of.sum(), (of.sum(2) == 1).sum(), used.sum()]).float()
        sets, single, features = self.clt.sum_over_shards(counts)
        return {"sets": sets / features.clamp_min(1), "one_set": single / features.clamp_min(1)}

    # -- checkpoints -------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """`p` `(L, F, sets)`: the inclusion probabilities; `theta`; the sums that use is made of; the sets' names."""
        by_feature = {
            name: whole_features(self.clt, getattr(self, name).transpose(0, 1)).transpose(0, 1).cpu().clone()
            for name in ("p", "squares")
        }
        return {
            **by_feature,
            "theta": self.theta.cpu().clone(),
            "tokens": self.tokens.cpu().clone(),
            "studies": list(self.studies),
            "steps": self.steps,
        }

    def take(self, state: dict[str, Any]) -> None:
        if list(state["studies"]) != list(self.studies):
            raise UserError(
                f"the checkpoint's {type(self).__name__} is of the sets {', '.join(state['studies'])}, the run's are "
                f"{', '.join(self.studies)}: resume with the same sets, in the same order"
            )
        for name in ("p", "squares"):
            own = getattr(self, name).transpose(0, 1)
            given = own_features(self, self.clt, state[name].transpose(0, 1), own, "features (F, layers, sets)")
            setattr(self, name, given.transpose(0, 1).clone(memory_format=torch.contiguous_format))
        self.steps = int(state["steps"])
        self.theta, self.tokens = (state[name].to(self.theta, copy=True) for name in ("theta", "tokens"))
