"""Activations from their configuration."""

from __future__ import annotations

from typing import Any

from clt_lightning.core.classes import make_from
from clt_lightning.transcoder.activations.abs_topk import AbsTopK
from clt_lightning.transcoder.activations.base import Activation
from clt_lightning.transcoder.activations.batch_topk import BatchTopK
from clt_lightning.transcoder.activations.jump_relu import JumpReLU
from clt_lightning.transcoder.activations.relu import ReLU
from clt_lightning.transcoder.activations.topk import TopK

ACTIVATIONS: dict[str, type[Activation]] = {c.__name__: c for c in (ReLU, TopK, AbsTopK, BatchTopK, JumpReLU)}


def from_config(config: dict[str, Any], *, trusted: bool = True) -> Activation:
    """Builds an activation from `{"class_path": ..., "init_args": ...}`.

    Args:
        config: the bare name of one of this package's, or the full path of any other.
        trusted: whether the user wrote it. If not, a class of another package is taken only if it is imported already.

    Raises:
        UserError: no such class, one that may not be imported, or arguments that it does not take.
    """
    made: Activation = make_from(config, Activation, ACTIVATIONS, "activation", trusted=trusted)
    return made
