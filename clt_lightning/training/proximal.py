"""When the priors have their turn in a run."""

from __future__ import annotations

from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.training.capturing import Capturing
from clt_lightning.training.priors.base import Prior


class Proximal(Capturing):
    """The hooks of Lightning after optimizer steps, before evaluations, and for the priors' part of a checkpoint."""

    total_steps: int

    def priors(self) -> list[Prior]:
        """Those of `model.loss.extra` that are on.

        Raises:
            UserError: several act on the weights: each would undo what the other holds at zero.
        """
        found = [term for term in self.loss_config.priors() if isinstance(term, Prior)]
        on_weights = [type(prior).__name__ for prior in found if prior.acts_on_weights]
        if len(on_weights) > 1:
            raise UserError(f"model.loss.extra: one prior on the weights at a time, got {', '.join(on_weights)}")
        return found

    def attach_priors(self) -> None:
        """Before the first step, when the transcoder is normalised and on its device."""
        names = getattr(getattr(self.trainer, "datamodule", None), "names", None)
        for prior in self.priors():
            prior.studies = tuple(names) if isinstance(names, list | tuple) else ()
            prior.attach(self.transcoder)
            prior.check_length(self.total_steps)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        lr = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        for prior in self.priors():
            prior.after_step(step, self.total_steps, lr)
        if self.units is not None:
            self.units.after_step()

    def on_validation_start(self) -> None:
        if not self.trainer.sanity_checking and self.trainer.training:
            for prior in self.priors():
                prior.catch_up()

    def on_train_end(self) -> None:
        for prior in self.priors():
            prior.detach()

    def _priors_state(self) -> dict[str, Any]:
        return {prior.name: prior.state_dict() for prior in self.priors()}

    def _load_priors(self, states: dict[str, Any]) -> None:
        for prior in self.priors():
            if prior.name in states:
                prior.load_state_dict(states[prior.name])
