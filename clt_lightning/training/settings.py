"""The plain settings of a run: what stands under `model:` in a config. Their docstrings are the command line's help."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_type_hints

from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError, about
from clt_lightning.core.sites import Sites
from clt_lightning.training.losses import LossConfig, LossTerm
from clt_lightning.training.losses.base import term_from_config
from clt_lightning.transcoder import Activation, BatchTopK
from clt_lightning.transcoder.activations import from_config
from clt_lightning.transcoder.decoders import Topology
from clt_lightning.transcoder.encoders import Backend
from clt_lightning.transcoder.scaled import Normalize


@dataclass
class TranscoderConfig:
    """The transcoder; layers and width come from the backbone.

    Args:
        n_features: dictionary size F of each layer.
        activation: which pre-activations become codes: TopK, AbsTopK, BatchTopK, JumpReLU or ReLU.
        topology: `cross_layer`; baselines: `per_layer` (per-layer transcoders) and `sae` (reads and rebuilds MLP
            outputs).
        skip: adds a linear path from x to y_hat in each layer.
        backend: `auto` takes the sparse or the dense path by measured density; `sparse` and `dense` force one.
        sites: what of the backbone is read and rebuilt, and at which blocks (docs/sites.md); the topology's own by
            default: MLP inputs and outputs of all blocks, or MLP outputs alone for `sae`.
        normalize: `layer` scales x and y per layer; `token` (topology `sae`) standardises every token, so that those of
            large norm do not have the loss to themselves.
    """

    n_features: int = 6144
    activation: Activation = field(default_factory=lambda: BatchTopK(64))
    topology: Topology = "cross_layer"
    skip: bool = False
    backend: Backend = "auto"
    sites: Sites = field(default_factory=Sites)
    normalize: Normalize = "layer"

    def __post_init__(self) -> None:
        check_fields(self, "transcoder")
        with about("transcoder"):
            self.sites.of(self.topology)


TokenSet = Literal["all", "cls", "register", "patch"]


@dataclass
class ScheduleConfig:
    """The learning rate over the run, as a factor on the optimizer's own; counted in optimizer steps.

    Args:
        warmup_steps: linear rise from 0.
        decay: shape of the fall at the end: `linear`, `cosine` or `none`.
        decay_fraction: share of the run (`trainer.max_steps`) that the fall takes; 1 falls from the end of the
            warm-up on.
        final_factor: factor reached at the last step.
    """

    warmup_steps: int = 0
    decay: Literal["linear", "cosine", "none"] = "linear"
    decay_fraction: float = 0.2
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "schedule")
        if self.warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps must not be negative, got {self.warmup_steps}")
        for name in ("decay_fraction", "final_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"schedule.{name} must lie in [0, 1], got {getattr(self, name)}")


@dataclass
class TokensConfig:
    """Which tokens a training step learns from.

    Args:
        set: the tokens that are learned from: `all`, `cls`, `register` or `patch`.
        per_image: random positions kept of every image, of that set, the same ones in all layers; null keeps all.
        buffer: capacity in tokens of an in-memory shuffle buffer of activations, a process; a step's tokens then come
            from many batches of images. 0 turns it off. Memory: capacity x layers x d_model x 2 x (2 or 4) bytes.
        statistics: tokens (of all processes together) that the normalisation is estimated from, once, before the
            first step.
        max_tokens_per_chunk: a step runs forward and backward over so many tokens at a time, so that a large batch
            fits: same gradients, memory of one chunk's activations and one more set of gradients. BatchTopK then shares
            its budget within a chunk. null: all at once.
    """

    set: TokenSet = "all"
    per_image: int | None = None
    buffer: int = 0
    statistics: int = 16384
    max_tokens_per_chunk: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "tokens")
        if self.per_image is not None and self.per_image < 1:
            raise UserError(f"tokens.per_image must be at least 1 or null, got {self.per_image}")
        if self.max_tokens_per_chunk is not None and self.max_tokens_per_chunk < 1:
            raise UserError(f"tokens.max_tokens_per_chunk must be at least 1 or null, got {self.max_tokens_per_chunk}")
        if self.buffer < 0 or self.statistics < 1:
            raise UserError(
                f"tokens.buffer must be >= 0 and tokens.statistics >= 1, got {self.buffer}, {self.statistics}"
            )


@dataclass
class ReviveConfig:
    """Features that have stopped firing come back: the encoder bias of each rises in every step until it fires again,
    and the loss then decides what it is good for. A feature below BatchTopK's cut gets no gradient and would never
    return by itself (docs/training.md).

    Args:
        speed: rise of the bias in an optimizer step, in learning rates (Adam moves a weight by about one); the rise
            therefore falls with the schedule. 0 turns it off.
        after_tokens: a feature's bias begins to rise when it has not fired on that many tokens (of all processes
            together).
    """

    speed: float = 6.0
    after_tokens: int = 50_000

    def __post_init__(self) -> None:
        check_fields(self, "revive")
        if self.speed < 0 or self.after_tokens < 1:
            raise UserError(f"revive: speed must not be negative and after_tokens at least 1, got {self}")


@dataclass
class ParallelConfig:
    """How a transcoder that is too large for one GPU is divided (docs/scaling.md). The numbers of a run do not depend
    on it, and neither do its checkpoints.

    Args:
        feature: processes that share the features of every layer; divides `trainer.devices` x `trainer.num_nodes`, and
            groups of so many see different batches. 1: every process holds all features (DDP).
    """

    feature: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "parallel")
        if self.feature < 1:
            raise UserError(f"parallel.feature must be at least 1, got {self.feature}")


T = TypeVar("T")


def from_plain(cls: type[T], value: T | dict[str, Any] | None, *, trusted: bool = True) -> T:
    """A settings object from itself, from a plain dict (as a checkpoint holds it) or from None (all defaults).

    Args:
        cls: a dataclass of settings.
        value: the settings.
        trusted: whether the user wrote them; if not, only classes of this package and imported ones are taken.

    Raises:
        UserError: unknown keys, or a class that cannot or may not be imported.
    """
    if value is None:
        return cls()
    if isinstance(value, cls):
        return copy.deepcopy(value)  # a default argument is one object for all: nobody may change it for the others
    if not isinstance(value, dict):
        raise UserError(f"{cls.__name__}: expected a table of settings, got {value!r}")
    hints = get_type_hints(cls)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise UserError(f"{cls.__name__}: unknown keys {', '.join(unknown)}; known are {', '.join(hints)}")
    arguments = dict(value)
    for key, item in value.items():
        if isinstance(item, dict):
            if hints[key] is Activation:
                arguments[key] = from_config(item, trusted=trusted)
            elif dataclasses.is_dataclass(hints[key]):
                arguments[key] = from_plain(hints[key], item, trusted=trusted)
        elif hints[key] == list[LossTerm] and isinstance(item, list):
            arguments[key] = [term_from_config(t, trusted=trusted) if isinstance(t, dict) else t for t in item]
    return cls(**arguments)


def to_plain(value: Any) -> Any:
    """The same settings as plain dicts, lists and numbers: what a checkpoint may hold."""
    if isinstance(value, Activation | LossTerm):
        return value.config()
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


__all__ = [
    "LossConfig",
    "ParallelConfig",
    "ReviveConfig",
    "ScheduleConfig",
    "TokensConfig",
    "TranscoderConfig",
    "from_plain",
    "to_plain",
]
