"""Where a run lives and where it goes on: `--ckpt_path last` before Lightning starts."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.run.checkpoint_io import LAST, PREVIOUS, read_checkpoint, usable


@dataclass(frozen=True)
class Progress:
    """How far a checkpoint is.

    Attributes:
        path: the checkpoint.
        step: optimizer steps done.
        epochs: training epochs done.
        validation_due: whether it was written before a validation that was due at its step.
    """

    path: Path
    step: int
    epochs: int
    validation_due: bool = False

    @property
    def purge_step(self) -> int:
        """From which step on TensorBoard drops what an earlier start has logged.

        Lightning logs step n (counted from 0) and the validation after it at n.
        """
        return max(0, self.step - 1) if self.validation_due else self.step

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
        due = any(s.get("validation_due") for s in content["callbacks"].values() if isinstance(s, dict))
        return Progress(path, int(content["global_step"]), int(epochs), due)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no checkpoint of a training run (it lacks {error})") from error


def newest_version(root: Path) -> int | None:
    """The newest version of a run that has a checkpoint to go on from.

    Args:
        root: `<runs_dir>/<name>`.

    Returns:
        n of the highest `version_<n>` with a `checkpoints/last.ckpt` or `previous.ckpt`; None if there is none.
    """
    found = [
        int(folder.name.removeprefix("version_"))
        for folder in root.glob("version_*")
        if folder.name.removeprefix("version_").isdigit()
        and any((folder / "checkpoints" / name).exists() for name in (LAST, PREVIOUS))
    ]
    return max(found, default=None)


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


def evaluated_at(folder: Path) -> int | None:
    """Step of the last validation that `results.json` tells of; None if there is none."""
    try:
        return int(json.loads((folder / "results.json").read_text(encoding="utf-8"))["metrics"]["val"]["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def exported_at(folder: Path) -> int | None:
    """Step of the weights in the run's `transcoder/`; None if there are none."""
    try:
        content: dict[str, Any] = json.loads((folder / "transcoder" / "config.json").read_text(encoding="utf-8"))
        return int(content["metadata"]["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def require_writable(folder: Path) -> None:
    """Makes the run's folder and tries to write to it, before hours of work that could not be kept.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"the run cannot be written to {folder} ({error.strerror or error}): give another folder with --runs_dir, "
            "or mend its permissions"
        ) from error
