"""Activations from their configuration."""

from __future__ import annotations

import inspect
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.activations.abs_topk import AbsTopK
from clt_lightning.transcoder.activations.base import Activation
from clt_lightning.transcoder.activations.batch_topk import BatchTopK
from clt_lightning.transcoder.activations.jump_relu import JumpReLU
from clt_lightning.transcoder.activations.relu import ReLU
from clt_lightning.transcoder.activations.topk import TopK

ACTIVATIONS: dict[str, type[Activation]] = {c.__name__: c for c in (ReLU, TopK, AbsTopK, BatchTopK, JumpReLU)}


def from_config(config: dict[str, Any]) -> Activation:
    """Builds an activation from `{"class_path": ..., "init_args": ...}`.

    Raises:
        UserError: unknown class, or arguments that it does not take.
    """
    if not isinstance(config, dict) or "class_path" not in config:
        raise UserError(f"an activation is {{class_path: ..., init_args: ...}}, got {config!r}")
    name = str(config["class_path"]).rsplit(".", 1)[-1]
    if name not in ACTIVATIONS:
        raise UserError(f"unknown activation {config['class_path']!r}; there are {', '.join(ACTIVATIONS)}")
    arguments = config.get("init_args") or {}
    known = list(inspect.signature(ACTIVATIONS[name]).parameters)
    if not isinstance(arguments, dict) or set(arguments) - set(known):
        raise UserError(f"activation {name} takes {', '.join(known) or 'no arguments'}; got init_args {arguments!r}")
    try:
        return ACTIVATIONS[name](**arguments)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"activation {name}: {arguments!r}: {error}") from error
