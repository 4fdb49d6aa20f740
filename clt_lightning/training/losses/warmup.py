"""Coefficients of a term of the loss, which rise over a warm-up."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Protocol

from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError


class Penalty(Protocol):
    """What the settings of a term have that rises over a warm-up."""

    coefficient: float
    warmup_steps: int
    warmup_fraction: float


def check_part(part: Penalty, name: str) -> None:
    """Whether a term's settings make sense.

    Args:
        part: the settings.
        name: their key in a config, such as `loss.l1`.

    Raises:
        UserError: they do not; the message begins with the key.
    """
    if is_dataclass(part):
        check_fields(part, name)
    if part.coefficient < 0 or part.warmup_steps < 0:
        raise UserError(f"{name}: coefficient and warmup_steps must not be negative, got {part}")
    if not 0 <= part.warmup_fraction <= 1:
        raise UserError(f"{name}.warmup_fraction must lie in [0, 1], got {part.warmup_fraction}")
    if part.warmup_fraction and part.warmup_steps:
        raise UserError(f"{name}: set warmup_steps or warmup_fraction, not both (got {part})")


def warmed(part: Penalty, step: int, max_steps: int) -> float:
    """A term's coefficient at an optimizer step (from 0 on) of a run of `max_steps`."""
    steps = part.warmup_steps or part.warmup_fraction * max(max_steps, 0)
    return part.coefficient * min(1.0, (step + 1) / steps) if steps > 0 else part.coefficient
