"""What a prior on the weights is."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.training.losses.base import LossInputs, LossTerm
from clt_lightning.transcoder.clt import CrossLayerTranscoder


class WeightPrior(LossTerm):
    """A part of `model.loss.extra` that changes weights after each optimizer step (a proximal step), with no gradient.

    Its order in a step: the optimizer moves the weights, then `after_step`. Whoever reads weights between steps
    without the forward (a file, an evaluation) calls `catch_up` first: a prior may apply its steps late.
    """

    acts_on_weights: ClassVar[bool] = True

    def value(self, given: LossInputs) -> Tensor:
        """A prior has no value: it is not differentiated."""
        raise UserError(f"{type(self).__name__} acts on the weights and has no value in the loss")

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
        """Scalars to log, by name below `train/`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it, of all features; all processes must call it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes its state back, before `attach` or after."""
