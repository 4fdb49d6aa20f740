"""Learning-rate factors by step."""

from __future__ import annotations

import math
from collections.abc import Callable

from clt_lightning.core.errors import UserError
from clt_lightning.core.say import doubt
from clt_lightning.training.settings import ScheduleConfig


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
        text = (
            f"model.schedule.warmup_steps ({warmup}) exceeds trainer.max_steps ({max_steps}): its rate is never reached"
        )
        doubt(text, stacklevel=1)  # of this line, so once: a run by epochs asks for the factor at every step
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
