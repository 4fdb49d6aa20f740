"""What a term of the loss is, and what it is given."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

from torch import Tensor

from clt_lightning.core.classes import Recorded, make_from
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.clt import CrossLayerTranscoder
from clt_lightning.transcoder.codes import Codes
from clt_lightning.transcoder.requests import CLTOutput

#: What a term may ask for beside `y` and `y_hat`
Need = Literal["codes", "pre", "labels", "positions", "studies"]


class Term(Protocol):
    """What the terms have in common, this package's own and others."""

    name: ClassVar[str]
    needs: ClassVar[Collection[str]]
    sums_features: ClassVar[bool]
    coefficient: float
    warmup_steps: int
    warmup_fraction: float

    def value(self, given: LossInputs) -> Tensor:
        """The term's scalar value, without its coefficient."""


class LossTerm(Recorded):
    """A term of the loss from outside the package (CONTRIBUTING.md).

    A class of one's own defines `value` and states what it `needs`; its arguments are those of its `__init__` (or its
    fields, for a dataclass), and are kept for files. `model.loss.extra` takes it by its full path.

    Attributes:
        name: it is logged as `train/loss/<name>`; the class's own in snake case where none is stated.
        needs: what it reads of `LossInputs`, of `codes`, `pre`, `labels`, `positions`, `studies`; `y` and `y_hat` are
            always there.
        sums_features: whether the value is a sum over features, of which a process may hold a part (their values are
            then added up). Default: whether it needs codes or pre-activations.
        coefficient: weight in the loss.
        warmup_steps: optimizer steps over which the coefficient rises linearly from 0.
        warmup_fraction: the same as a share of the run (of `trainer.max_steps`), in the place of `warmup_steps`.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[Collection[str]] = ()
    sums_features: ClassVar[bool] = False
    is_prior: ClassVar[bool] = False
    acts_on_weights: ClassVar[bool] = False
    coefficient: float = 1.0
    warmup_steps: int = 0
    warmup_fraction: float = 0.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "name" not in own:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        known = get_args(Need)
        unknown = sorted(set(cls.needs) - set(known))
        if isinstance(cls.needs, str) or unknown:
            raise UserError(
                f"loss term {cls.__name__}: needs must be a list out of {', '.join(known)}, got {cls.needs!r}"
            )
        if "sums_features" not in own:
            cls.sums_features = bool({"codes", "pre"} & set(cls.needs))

    def value(self, given: LossInputs) -> Tensor:
        """The term's scalar value, without its coefficient: a mean over tokens and over layers, as of all terms."""
        raise NotImplementedError


def term_from_config(config: dict[str, Any], *, trusted: bool = True) -> LossTerm:
    """A term from `{"class_path": ..., "init_args": ...}`, as `transcoder.activations.from_config`.

    Raises:
        UserError: no such class, one that may not be imported, or arguments that it does not take.
    """
    from clt_lightning.training import priors  # which are made of terms

    own = {name: getattr(priors, name) for name in priors.SHIPPED}
    made: LossTerm = make_from(config, LossTerm, own, "loss term", trusted=trusted)
    return made


@dataclass(frozen=True)
class LossInputs:
    """What a term of the loss is given of a batch of tokens, or of a chunk of one.

    Attributes:
        clt: the transcoder.
        y: `(layers, tokens, d_out)` targets.
        out: what the forward made of the tokens. Codes and pre-activations are those of this process's features.
        label: `(tokens,)` int64, the class of each token's image; -1 for an image without one. None: not asked for.
        position: `(tokens,)` int64, the token's place among its image's; the backbone's prefix tokens come first.
        study: `(tokens,)` int64, which of several data sets each token's image is from. None: not asked for.
        allowed: what the term has asked for; None: everything that is there.
        term: its name, for messages.
        once: what is computed once for all terms.
    """

    clt: CrossLayerTranscoder
    y: Tensor
    out: CLTOutput
    label: Tensor | None = None
    position: Tensor | None = None
    study: Tensor | None = None
    allowed: frozenset[str] | None = None
    term: str = ""
    once: dict[str, Tensor] = field(default_factory=dict)

    @property
    def y_hat(self) -> Tensor:
        """`(layers, tokens, d_out)`: the reconstruction."""
        return self.out.y_hat

    @property
    def codes(self) -> Codes:
        """The codes of all layers, differentiable; `.dense()` is `(layers, tokens, F)`."""
        self._check("codes")
        return self.out.codes

    @property
    def pre(self) -> list[Tensor]:
        """One `(tokens, F)` tensor of pre-activations a layer, differentiable; the step takes the dense path then."""
        self._check("pre")
        assert self.out.pre is not None, "the forward was not asked for pre-activations"
        return self.out.pre

    @property
    def labels(self) -> Tensor:
        """`(tokens,)` int64: the class of each token's image; -1 for an image without one."""
        self._check("labels")
        assert self.label is not None
        return self.label

    @property
    def positions(self) -> Tensor:
        """`(tokens,)` int64: the token's place among its image's, prefix tokens first."""
        self._check("positions")
        assert self.position is not None
        return self.position

    @property
    def studies(self) -> Tensor:
        """`(tokens,)` int64: which of several data sets each token's image is from."""
        self._check("studies")
        assert self.study is not None
        return self.study

    @property
    def decoder_norms(self) -> Tensor:
        """`(layers, F)`: norm of each feature's concatenated decoders, in scaled units; differentiable."""
        if "norms" not in self.once:
            self.once["norms"] = self.clt.decoder_norms()
        return self.once["norms"]

    def _check(self, what: str) -> None:
        if self.allowed is not None and what not in self.allowed:
            raise UserError(f"loss term {self.term} reads {what}, which it does not name: add {what!r} to its `needs`")
