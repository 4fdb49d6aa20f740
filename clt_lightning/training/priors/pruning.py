"""Hard pruning while training: the baseline of the sparse-decoding prior that has a refit too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.training.priors.base import (
    WeightPrior,
    check_ranges,
    group_measures,
    need_length,
    need_targets,
    own_features,
    whole_features,
)
from clt_lightning.transcoder.clt import CrossLayerTranscoder
from clt_lightning.transcoder.support import cut_rank, group_ranks, hold


@dataclass
class GroupPruning(WeightPrior):
    """The decoder's smallest groups are set to zero while the run goes on, and stay there.

    The share that is left falls from 1 to `keep` between `start` and `1 - refit`, steeply at first (Zhu & Gupta 2017,
    "To prune, or not to prune"); with `start` = 1 - `refit` it is one cut. A feature keeps its largest group.

    Args:
        coefficient: 0 turns it off; without effect else.
        keep: share of the groups that are there at the end.
        start: share of the run before the first cut.
        refit: share of the run after the last one.
        every: optimizer steps between cuts.
        warmup_steps: without effect.
        warmup_fraction: without effect.
    """

    name: ClassVar[str] = "group_pruning"
    coefficient: float = 1.0
    keep: float = 0.5
    start: float = 0.3
    refit: float = 0.4
    every: int = 10
    warmup_steps: int = 0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, self.place)
        check_ranges(
            self.place,
            ("keep", self.keep, 0 < self.keep <= 1, "above 0 and at most 1"),
            ("start", self.start, 0 <= self.start < 1, "from 0 to below 1"),
            ("refit", self.refit, 0 <= self.refit <= 1 - self.start, "from 0 to 1 - start"),
            ("every", self.every, self.every >= 1, "1 or more"),
        )

    # -- the run -----------------------------------------------------------------------------------------------------
    def attach(self, clt: CrossLayerTranscoder) -> None:
        """Takes the transcoder.

        Raises:
            UserError: its features write to one layer only, or fewer groups are to be kept than there are features; or
                a checkpoint's state is of another shape.
        """
        need_targets(self, clt)
        each = [clt.n_targets(layer) for layer in range(clt.n_layers)]
        if round(self.keep * sum(each) * clt.n_features) < clt.n_layers * clt.n_features:
            least = math.ceil(1000 * clt.n_layers / sum(each)) / 1000
            raise UserError(
                f"{self.place}.keep={self.keep:g} would leave less than one group per feature: of "
                f"a transcoder of {clt.n_layers} layers take {least:g} or more"
            )
        self.clt = clt
        self.kept: list[Tensor] | None = None
        self.take_waiting()

    def detach(self) -> None:
        """Nothing waits."""

    def check_length(self, max_steps: int) -> None:
        need_length(self, max_steps)

    def share(self, step: int, max_steps: int) -> float | None:
        """What share of the groups a cut leaves at an optimizer step; None where there is no cut."""
        last = min(round((1 - self.refit) * max_steps), max_steps - 1)
        first = min(round(self.start * max_steps), last)
        if not first <= step <= last or (step != last and (step - first) % self.every):
            return None
        done = (step - first) / (last - first) if last > first else 1.0
        return self.keep + (1 - self.keep) * (1 - done) ** 3

    @torch.no_grad()
    def after_step(self, step: int, max_steps: int, lr: float) -> None:
        share = self.share(step, max_steps)
        if share is not None:
            ranks = group_ranks(self.clt)
            below = cut_rank(whole_features(self.clt, torch.cat(ranks, 1)).flatten(), share)
            # a feature that writes nothing yet has not shown where it will
            self.kept = [(rank > below) | (rank.amax(1, keepdim=True) == 0) for rank in ranks]
        if self.kept is not None:
            hold(self.clt, self.kept)

    @torch.no_grad()
    def measures(self) -> dict[str, Tensor]:
        """`groups` and `groups_share`, as of `SparseDecoding`."""
        return {} if self.kept is None else group_measures(self.clt, self.kept)

    # -- checkpoints -------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        return {} if self.kept is None else {"kept": [whole_features(self.clt, kept).cpu() for kept in self.kept]}

    def take(self, state: dict[str, Any]) -> None:
        self.kept = None
        if state:
            like = [torch.zeros(W.shape[:2], dtype=torch.bool, device=W.device) for W in self.clt.W_dec]
            self.kept = [own_features(self, self.clt, state["kept"][i], like[i]) for i in range(len(like))]
