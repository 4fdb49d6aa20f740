"""A run's folder, `<runs_dir>/<name>/version_<n>/`: every path in it, its versions, and which of them is finished."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import remove_leftovers
from clt_lightning.core.paths import expand
from clt_lightning.runs.lock import NAME as LOCK
from clt_lightning.runs.lock import holder
from clt_lightning.runs.together import settle

LAST = "last.ckpt"
#: The state before `last.ckpt`. Its name must not begin with `last`: Lightning would take it for one
PREVIOUS = "previous.ckpt"


@dataclass(frozen=True)
class RunFolder:
    """What lies where in a run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def transcoder(self) -> Path:
        return self.path / "transcoder"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def title(self) -> str:
        """Name and version of the run."""
        folder = self.path.resolve()
        return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("version_") else folder.name

    def predictions(self, split: str) -> Path:
        return self.path / "predictions" / split

    @property
    def version(self) -> int | None:
        """n of `version_<n>`; None for a folder of another name, such as a copy."""
        found = re.fullmatch(r"version_(\d+)", self.path.name)
        return int(found[1]) if found else None

    @property
    def shown(self) -> str:
        """The path for a message: relative where that is shorter, as one types it after `--run`."""
        return shown(self.path)

    def clear(self) -> None:
        """Finishes or removes what killed writers have left; to be called by the one that has the folder's lock."""
        settle(self.path)
        for folder in (self.path, self.transcoder, self.path / "evaluation", self.path / "predictions"):
            remove_leftovers(folder)

    # -- how far it is -----------------------------------------------------------------------------------------------
    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state to go on from."""
        return any((self.checkpoints / name).exists() for name in (LAST, PREVIOUS))

    @property
    def has_run(self) -> bool:
        """Whether a run has written here."""
        return self.config.is_file() or self.results.is_file() or any(self.checkpoints.glob("*.ckpt"))

    @property
    def is_empty(self) -> bool:
        """Whether a start that came to nothing has left it, or one that has not come far yet."""
        try:
            return all(entry.name == LOCK for entry in self.path.iterdir())
        except FileNotFoundError:
            return True

    @property
    def finished(self) -> str | None:
        """When its training ended (UTC); None if it has not, or was begun again."""
        result: str | None = _entry(self.results, "run", "finished")
        return result

    @property
    def evaluated_at(self) -> int | None:
        """Step of the last validation that `results.json` tells of; None without."""
        result: int | None = _entry(self.results, "metrics", "val", "step")
        return result

    @property
    def exported_at(self) -> int | None:
        """Step of the weights in `transcoder/`; None without."""
        result: int | None = _entry(self.transcoder / "config.json", "metadata", "step")
        return result

    def state(self) -> str:
        """How far it is, in words."""
        if (other := holder(self.path)) is not None:
            return f"is being written by {other}"
        if self.finished:
            return "is finished"
        return "is not finished" if self.has_checkpoint else "has no checkpoint"


def _entry(path: Path, *keys: str) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            content = content[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content


def shown(path: Path) -> str:
    """A path for a message: relative to the current folder where it lies in it."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def versions(root: Path) -> list[RunFolder]:
    """The versions of a run, in order.

    Args:
        root: `<runs_dir>/<name>`.
    """
    if not root.is_dir():
        return []
    found = [RunFolder(path) for path in root.iterdir() if path.is_dir()]
    return sorted((f for f in found if f.version is not None), key=lambda f: f.version or 0)


def newest_to_go_on(root: Path) -> RunFolder | None:
    """The newest version of a run that has a checkpoint to go on from; None without.

    Args:
        root: `<runs_dir>/<name>`.
    """
    return next((folder for folder in reversed(versions(root)) if folder.has_checkpoint), None)


def newest_without_checkpoint(root: Path) -> RunFolder | None:
    """The newest version that had begun and was killed before its first checkpoint; None without.

    Args:
        root: `<runs_dir>/<name>`.
    """
    found = (f for f in reversed(versions(root)) if f.has_run and not f.finished and holder(f.path) is None)
    return next((folder for folder in found if not folder.has_checkpoint), None)


def find_run(path: str | Path, option: str = "--run") -> RunFolder:
    """What `--run PATH` means.

    Args:
        path: `runs/<name>/version_<n>` for that version, `runs/<name>` for the newest finished one; or any folder that
            is a copy of a run's.
        option: for the messages.

    Raises:
        UserError: there is no such folder, it is none of a run, or no version of the run is finished.
    """
    folder = Path(expand(path, option))
    if not folder.is_dir():
        raise UserError(f"{option} {path}: there is no such folder{_there(folder)}")
    found = RunFolder(folder)
    if found.version is not None or found.config.is_file() or found.results.is_file():
        return found
    there = [version for version in versions(folder) if not version.is_empty]
    if not there:
        raise UserError(
            f"{option} {path} is not a run's folder: it holds no config.yaml, no results.json and no version_<n>"
            f"{_there(folder)}"
        )
    finished = [version for version in there if version.finished]
    if finished:
        return finished[-1]
    told = "; ".join(f"{version.path.name} {version.state()}" for version in there[-5:])
    raise UserError(f"{option} {path}: no version is finished ({told}). {option} {there[-1].shown} takes it as it is")


def _there(folder: Path) -> str:
    """The runs that are there in the place of one that is not."""
    for above in (folder, folder.parent):
        if above.is_dir() and (names := sorted(p.name for p in above.iterdir() if versions(p))):
            return f"; the runs in {above} are {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
    there = [version.path.name for version in versions(folder.parent)]
    return f"; there is {', '.join(there[-8:])}" if there else "; name a run, such as runs/quickstart"
