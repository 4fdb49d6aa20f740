"""The settings of the loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.training.losses.auxk import AuxKConfig
from clt_lightning.training.losses.base import LossTerm, Need, Term
from clt_lightning.training.losses.cascade import CascadeConfig
from clt_lightning.training.losses.l1 import L1Config
from clt_lightning.training.losses.pre_activation import PreActivationConfig
from clt_lightning.training.losses.prototype import PrototypeConfig
from clt_lightning.training.losses.tanh import TanhConfig
from clt_lightning.training.losses.warmup import Penalty, check_part


@dataclass
class LossConfig:
    """Coefficients and warm-up of each part of the loss.

    Args:
        layer_weights: one weight a target layer for the reconstruction, rescaled to mean 1; null weighs all alike.
        l1: L1 penalty on code x decoder norm.
        tanh: tanh penalty on code x decoder norm.
        pre_activation: penalty on pre-activations below the threshold.
        prototype: pulls the codes of [CLS] to their class's mean; needs labels.
        auxk: auxiliary reconstruction from dead features.
        cascade: terms on the CLIP whose MLPs are all replaced.
        extra: further terms by class path, each a `clt_lightning.training.losses.LossTerm` (docs/training.md).
    """

    layer_weights: list[float] | None = None
    l1: L1Config = field(default_factory=L1Config)
    tanh: TanhConfig = field(default_factory=TanhConfig)
    pre_activation: PreActivationConfig = field(default_factory=PreActivationConfig)
    prototype: PrototypeConfig = field(default_factory=PrototypeConfig)
    auxk: AuxKConfig = field(default_factory=AuxKConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    extra: list[LossTerm] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self, "loss")
        self._check_extra()
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
        """The parts that have a coefficient which rises over a warm-up, by their key under `model.loss`."""
        own: dict[str, Penalty] = {"l1": self.l1, "tanh": self.tanh}
        own |= {"pre_activation": self.pre_activation, "prototype": self.prototype, "auxk": self.auxk}
        return own | {f"extra.{term.name}": term for term in self.extra}

    def terms(self) -> list[Term]:
        """The terms that are on and are made of what the forward gives alone: all but reconstruction and AuxK."""
        every: list[Term] = [self.l1, self.tanh, self.pre_activation, self.prototype, *self.extra]
        return [term for term in every if term.coefficient and not getattr(term, "acts_on_weights", False)]

    def priors(self) -> list[LossTerm]:
        """Those of `extra` that are on and learn something beside the weights (`training.priors.Prior`)."""
        return [term for term in self.extra if term.coefficient and term.is_prior]

    @property
    def reads_marks(self) -> bool:
        """Whether a term reads what each token is: its image's class or set, or its place."""
        return self.needs("labels") or self.needs("positions") or self.needs("studies")

    def needs(self, what: Need) -> bool:
        """Whether a term that is on needs something."""
        return any(what in term.needs for term in self.terms())

    def _check_extra(self) -> None:
        taken = {"reconstruction", "l1", "tanh", "pre_activation", "prototype", "auxk"}
        for index, term in enumerate(self.extra):
            where = f"loss.extra[{index}]"
            if not isinstance(term, LossTerm):
                raise UserError(f"{where} must be a LossTerm, or its class_path and init_args, got {term!r}")
            if term.name in taken or term.name.startswith("cascade_"):
                raise UserError(
                    f"{where}: there is a term {term.name!r} already: give {type(term).__name__} another `name`"
                )
            taken.add(term.name)
            check_part(term, where)

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
