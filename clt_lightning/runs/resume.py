"""Where a run lives and where it goes on: `--ckpt_path last` before Lightning starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.runs.checkpoint_io import read_checkpoint, usable


@dataclass(frozen=True)
class Progress:
    """How far a checkpoint is.

    Attributes:
        path: the checkpoint.
        step: optimizer steps done.
        epochs: training epochs done.
        validation_due: whether it was written before a validation that was due at its step.
        validated: whether it was written after a validation of its step.
        stopped: what early stopping said (`runs.stopping`).
    """

    path: Path
    step: int
    epochs: int
    validation_due: bool = False
    validated: bool = False
    stopped: tuple[dict[str, Any], ...] = ()

    def purge_step(self, ended: bool) -> int:
        """From which step on TensorBoard drops what an earlier start has logged.

        Lightning logs step n (counted from 0) and the validation after it at n, and the validation at the end of
        training one later.

        Args:
            ended: whether no step is left to train.
        """
        if self.validation_due:
            return max(0, self.step - 1)
        return self.step + 1 if ended and self.validated else self.step

    def finished(self, max_steps: int, max_epochs: int | None) -> bool:
        """Whether a run of this length has nothing left to train (-1 and None: no limit)."""
        return 0 <= max_steps <= self.step or (max_epochs is not None and 0 <= max_epochs <= self.epochs)


def progress(path: Path) -> Progress:
    """Reads how far a whole checkpoint is, without its weights.

    Raises:
        UserError: it is no checkpoint of a training run.
    """
    content = read_checkpoint(path)
    try:
        epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        states = [s for s in content["callbacks"].values() if isinstance(s, dict)]
        due = any(s.get("validation_due") for s in states)
        step = int(content["global_step"])
        validated = any(s.get("validated_at") == step for s in states)
        stopped = tuple(stop for s in states for stop in s.get("stopped", ()))
        return Progress(path, step, int(epochs), due, validated, stopped)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no checkpoint of a training run (it lacks {error})") from error


def find(ckpt_path: str | Path | None, folder: Path) -> Progress | None:
    """What a fit starts from.

    Args:
        ckpt_path: as the user gave it: a file, `last`, or None.
        folder: the run's `checkpoints/`.

    Returns:
        None for a fresh start; for `last`, the newest whole checkpoint of the folder.

    Raises:
        UserError: the file is damaged, or nothing whole is left.
    """
    if ckpt_path is None:
        return None
    if str(ckpt_path) == "last":
        found = usable(folder)
        return None if found is None else progress(found)
    return progress(Path(ckpt_path)) if "://" not in str(ckpt_path) else None
