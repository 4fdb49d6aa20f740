"""What a prior is, and what its kinds have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.parallel import ShardedTranscoder
from clt_lightning.training.losses.base import LossInputs, LossTerm
from clt_lightning.transcoder.clt import CrossLayerTranscoder


class Prior(LossTerm):
    """A part of `model.loss.extra` that learns something beside the weights, which checkpoints hold.

    Attributes:
        studies: names of the data sets that the run learns from, where they are several; set before `attach`.
    """

    is_prior: ClassVar[bool] = True
    studies: Sequence[str] = ()

    @property
    def place(self) -> str:
        """Where it stands in a config, for messages."""
        return f"loss.extra: {type(self).__name__}"

    def attach(self, clt: CrossLayerTranscoder) -> None:
        """Before the first step: takes the transcoder, whose state it may make."""
        raise NotImplementedError

    def check_length(self, max_steps: int) -> None:
        """Whether it can run over so many optimizer steps; 0 or less: the length is not known.

        Raises:
            UserError: it cannot.
        """

    def detach(self) -> None:
        """After the last step: brings everything up to date, and leaves the transcoder as any other."""
        raise NotImplementedError

    def after_step(self, step: int, max_steps: int, lr: float) -> None:
        """One step of the prior.

        Args:
            step: the optimizer step that was just made, from 0 on.
            max_steps: of the whole run.
            lr: learning rate of the step.
        """
        raise NotImplementedError

    def catch_up(self) -> None:
        """Brings all weights up to date."""

    def measures(self) -> dict[str, Tensor]:
        """Scalars to log, by name below `train/`; all processes must call it."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it, of all features; all processes must call it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes its state back, before `attach` or after."""
        if "clt" in self.__dict__:
            self.take(state)
        else:
            self._waiting = state

    def take(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave, when `attach` has made what it goes into.

        Raises:
            UserError: it is of another transcoder.
        """

    def take_waiting(self) -> None:
        """At the end of `attach`: what a checkpoint brought before."""
        if (state := self.__dict__.pop("_waiting", None)) is not None:
            self.take(state)


class WeightPrior(Prior):
    """A prior that changes weights after each optimizer step (a proximal step), with no gradient.

    Its order in a step: the optimizer moves the weights, then `after_step`. Whoever reads weights between steps
    without the forward (a file, an evaluation) calls `catch_up` first: a prior may apply its steps late.
    """

    acts_on_weights: ClassVar[bool] = True

    def value(self, given: LossInputs) -> Tensor:
        """It has no value: it is not differentiated."""
        raise UserError(f"{type(self).__name__} acts on the weights and has no value in the loss")


Rule = tuple[str, Any, bool, str]
"""Of a setting its name, value, whether it is sound, and what is, in words."""


def check_ranges(place: str, *rules: Rule) -> None:
    """Whether settings are in their ranges.

    Args:
        place: where they stand, for the message.
        rules: of each setting.

    Raises:
        UserError: one is not.
    """
    for key, value, is_sound, wanted in rules:
        if not is_sound:
            raise UserError(f"{place}.{key} must be {wanted}, got {value}")


def need_length(prior: Prior, max_steps: int) -> None:
    """Refuses a run whose length is not known, of which a prior's times are shares.

    Raises:
        UserError: it is not.
    """
    if max_steps <= 0:
        raise UserError(f"{type(prior).__name__} needs the length of the run: set trainer.max_steps")


def need_targets(prior: Prior, clt: CrossLayerTranscoder) -> None:
    """Refuses a transcoder whose features write to one layer.

    Raises:
        UserError: they do.
    """
    if max(clt.n_targets(i) for i in range(clt.n_layers)) < 2:
        raise UserError(
            f"{type(prior).__name__} chooses the layers that a feature writes to; those of topology '{clt.topology}' "
            f"with {clt.n_layers} layers write to one"
        )


def group_measures(clt: CrossLayerTranscoder, alive: Sequence[Tensor]) -> dict[str, Tensor]:
    """What a prior on groups logs, from which groups are there, one `(F, targets)` bool a layer of this process.

    Returns:
        `groups`: mean number of groups of the features that have any; `groups_share`: of all that could be.
    """
    counts = torch.stack(
        [
            torch.stack([a.sum() for a in alive]).sum(),
            torch.stack([a.any(1).sum() for a in alive]).sum(),
            torch.tensor(sum(a.numel() for a in alive), device=alive[0].device),
        ]
    )
    groups, features, every = clt.sum_over_shards(counts.float())
    return {"groups": groups / features.clamp_min(1), "groups_share": groups / every}


def whole_features(clt: CrossLayerTranscoder, part: Tensor) -> Tensor:
    """Of all features, from every process's part of them (the first dimension); all processes must call it."""
    return clt.shards.all_gather(part).flatten(0, 1) if isinstance(clt, ShardedTranscoder) else part


def own_features(prior: Prior, clt: CrossLayerTranscoder, whole: Tensor, own: Tensor, what: str = "groups") -> Tensor:
    """This process's part of what a checkpoint holds of features (the first dimension), where and as `own` is.

    Raises:
        UserError: it is of another shape than `own`.
    """
    given = whole[clt.own] if isinstance(clt, ShardedTranscoder) else whole
    if given.shape != own.shape:
        raise UserError(
            f"the checkpoint's {type(prior).__name__} is for {what} {tuple(given.shape)}, the transcoder has "
            f"{tuple(own.shape)}"
        )
    return given.to(own)
