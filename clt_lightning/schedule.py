"""Learning-rate factors by step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from clt_lightning.core.errors import UserError
from clt_lightning.settings import ScheduleConfig

log = logging.getLogger(__name__)


def lr_factor(config: ScheduleConfig, max_steps: int) -> Callable[[int], float]:
    """The factor as a function of the optimizer step, for `LambdaLR`.

    The total comes from `trainer.max_steps` and nothing else: asking Lightning for its estimate would load the data
    early, and make an interrupted run start its epoch anew.

    Args:
        config: the schedule.
        max_steps: optimizer steps of the whole run.

    Raises:
        UserError: a decay without a known end.
    """
    decays = config.decay != "none" and config.decay_fraction > 0
    if decays and max_steps <= 0:
        raise UserError(
            "model.schedule.decay needs the length of the run: set trainer.max_steps (or trainer.max_epochs, with a "
            "loader of known length), or model.schedule.decay: none"
        )
    warmup = config.warmup_steps
    if 0 < max_steps < warmup:
        log.warning(
            "model.schedule.warmup_steps (%d) exceeds trainer.max_steps (%d): its rate is never reached",
            warmup,
            max_steps,
        )
    start = max(warmup, round(max_steps * (1 - config.decay_fraction)))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if not decays or step < start:
            return 1.0
        # the last step (max_steps - 1) is still a step: the final factor is reached after it
        progress = min(1.0, (step - start) / max(1, max_steps - start))
        fall = 1 - progress if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return config.final_factor + (1 - config.final_factor) * fall

    return factor
