"""The parser of fit, validate, test and predict."""

from __future__ import annotations

import typing
from typing import Any

from jsonargparse._typehints import ActionTypeHint
from lightning.pytorch.cli import LightningArgumentParser

from clt_lightning.cli.schema import alternatives


class Parser(LightningArgumentParser):
    """LightningCLI's parser, which tells 1 from 1.0 wherever a number of batches or a share of them may stand."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        action = super().add_argument(*args, **kwargs)
        if isinstance(action, ActionTypeHint):
            action._typehint = int_before_float(action._typehint)
        return action


def int_before_float(hint: Any) -> Any:
    """A union in which a whole number is tried before a number with a point: `limit_val_batches=1` is one batch.

    Which of the two comes first in `Optional[Union[int, float]]` depends on what Python has seen before.
    """
    kinds = list(alternatives(hint))
    if int not in kinds or float not in kinds or kinds.index(int) < kinds.index(float):
        return hint
    kinds.remove(int)
    kinds.insert(kinds.index(float), int)
    return typing.Union[tuple(kinds)]  # noqa: UP007
