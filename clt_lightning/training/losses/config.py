"""The settings of the loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.training.losses.auxk import AuxKConfig
from clt_lightning.training.losses.cascade import CascadeConfig
from clt_lightning.training.losses.l1 import L1Config
from clt_lightning.training.losses.pre_activation import PreActivationConfig
from clt_lightning.training.losses.tanh import TanhConfig
from clt_lightning.training.losses.warmup import Penalty


@dataclass
class LossConfig:
    """Coefficients and warm-up of each part of the loss.

    Args:
        layer_weights: one weight a target layer for the reconstruction, rescaled to mean 1; null weighs all alike.
        l1: L1 penalty on code x decoder norm.
        tanh: tanh penalty on code x decoder norm.
        pre_activation: penalty on pre-activations below the threshold.
        auxk: auxiliary reconstruction from dead features.
        cascade: terms on the CLIP whose MLPs are all replaced.
    """

    layer_weights: list[float] | None = None
    l1: L1Config = field(default_factory=L1Config)
    tanh: TanhConfig = field(default_factory=TanhConfig)
    pre_activation: PreActivationConfig = field(default_factory=PreActivationConfig)
    auxk: AuxKConfig = field(default_factory=AuxKConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)

    def __post_init__(self) -> None:
        check_fields(self, "loss")
        cascade = self.cascade
        if (
            min(cascade.stream, cascade.embedding, cascade.reconstruction) < 0
            or cascade.images < 1
            or not 0 <= cascade.start <= 1
            or not 0 <= cascade.warmup <= 1
        ):
            raise UserError(
                "loss.cascade: stream, embedding and reconstruction must not be negative, images at least 1, start and "
                f"warmup in [0, 1], got {cascade}"
            )
        if self.auxk.token_fraction is not None and not 0 < self.auxk.token_fraction <= 1:
            raise UserError(f"loss.auxk.token_fraction must lie in (0, 1] or be null, got {self.auxk.token_fraction}")
        if self.auxk.k is not None and self.auxk.k < 1:
            raise UserError(f"loss.auxk.k must be at least 1 or null, got {self.auxk.k}")

    def parts(self) -> dict[str, Penalty]:
        """The parts that have a coefficient which rises over a warm-up, by name."""
        return {"l1": self.l1, "tanh": self.tanh, "pre_activation": self.pre_activation, "auxk": self.auxk}

    def never_reached(self, max_steps: int) -> list[str]:
        """What to tell of warm-ups that are longer than the run, whose coefficients are never reached.

        Raises:
            UserError: a warm-up is a share of a run whose length is not known.
        """
        shares = [name for name, part in self.parts().items() if part.coefficient and part.warmup_fraction]
        if shares and max_steps <= 0:
            raise UserError(
                f"model.loss.{shares[0]}.warmup_fraction needs the length of the run: set trainer.max_steps, or give "
                "warmup_steps"
            )
        return [
            f"model.loss.{name}.warmup_steps ({part.warmup_steps}) exceeds trainer.max_steps ({max_steps}): at the end "
            f"its coefficient is {part.coefficient * max_steps / part.warmup_steps:.2g} in the place of "
            f"{part.coefficient:g}"
            for name, part in self.parts().items()
            if part.coefficient and not part.warmup_fraction and 0 < max_steps < part.warmup_steps
        ]
