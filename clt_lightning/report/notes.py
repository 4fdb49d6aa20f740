"""What a person has noted of features: stars, names, comments; written by the pages, read back as names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json

SCHEMA = 1
LONGEST_LABEL, LONGEST_COMMENT = 80, 4000
_FIELDS = {"star": bool, "label": str, "comment": str}


@dataclass(frozen=True)
class RunId:
    """Which weights notes are about: feature 3/120 of another run is another feature.

    Attributes:
        title: name and version, for people.
        started: when its training began (results.json).
        step: of the weights.
    """

    title: str
    started: str | None
    step: int | None

    def to_json(self) -> dict[str, Any]:
        """As the pages and their exports keep it."""
        return {"title": self.title, "started": self.started, "step": self.step}

    def same(self, other: dict[str, Any]) -> bool:
        """Whether notes of `other` are about these weights; folders are renamed, so the title does not count."""
        return (other.get("started"), other.get("step")) == (self.started, self.step)


@dataclass(frozen=True)
class Notes:
    """A file of notes.

    Attributes:
        path: the file.
        run: `title`, `started`, `step` of the run that they are about; None: any, which only a person can have written.
        features: by `<layer>/<feature>`: `star`, `label`, `comment`, those that there are.
    """

    path: Path
    run: dict[str, Any] | None
    features: dict[str, dict[str, Any]]

    def check_range(self, layers: int, features: int) -> None:
        """Whether the run has all features that are noted; sizes of 0 are not known.

        Raises:
            UserError: it has not.
        """
        for key in self.features:
            layer, feature = map(int, key.split("/"))
            if layers and features and (layer >= layers or feature >= features):
                raise UserError(
                    f"{self.path}: features.{key}: the run has layers 0..{layers - 1} of features 0..{features - 1}"
                )


def read_notes(path: str | Path) -> Notes:
    """Reads what the pages have exported.

    Args:
        path: a JSON file: `{"clt_notes": 1, "run": {"title", "started", "step"}, "features": {"3/120": {"star": true,
            "label": "stripes", "comment": "…"}}}`.

    Raises:
        UserError: not such a file; the message names file and key.
    """
    content = read_json(path)

    def wrong(key: str, why: str) -> UserError:
        return UserError(f"{path}: {key}: {why}")

    if content.get("clt_notes") != SCHEMA:
        raise wrong("clt_notes", f"expected {SCHEMA}, as the pages' export has it, got {content.get('clt_notes')!r}")
    unknown = sorted(set(content) - {"clt_notes", "run", "features"})
    if unknown:
        raise wrong(unknown[0], "is not known here; there are: clt_notes, run, features")
    run = content.get("run")
    if run is not None and not (isinstance(run, dict) and {"started", "step"} <= set(run)):
        raise wrong("run", "expected title, started and step of the run that was noted, or null for any run")
    features = content.get("features")
    if not isinstance(features, dict):
        raise wrong("features", f"expected notes by <layer>/<feature>, got {_shown(features)}")
    found = {}
    for key, note in features.items():
        if not re.fullmatch(r"(0|[1-9]\d{0,8})/(0|[1-9]\d{0,8})", key, re.ASCII):
            raise wrong(f"features.{key}", "expected <layer>/<feature>, such as 3/120")
        found[key] = _note(note, lambda field, why, key=key: wrong(f"features.{key}{field}", why))
    return Notes(Path(path), run, {key: note for key, note in found.items() if note})


def _note(note: Any, wrong: Any) -> dict[str, Any]:
    if not isinstance(note, dict):
        raise wrong("", f"expected star, label, comment, got {_shown(note)}")
    kept: dict[str, Any] = {}
    for field, value in note.items():
        if field not in _FIELDS:
            raise wrong(f".{field}", f"is not known here; there are: {', '.join(_FIELDS)}")
        if not isinstance(value, _FIELDS[field]):
            wanted = "true or false" if field == "star" else "a text"
            raise wrong(f".{field}", f"expected {wanted}, got {_shown(value)}")
        longest = LONGEST_LABEL if field == "label" else LONGEST_COMMENT
        if isinstance(value, str) and len(value) > longest:
            raise wrong(f".{field}", f"{len(value):,} characters; at most {longest:,} fit")
        value = value.strip() if isinstance(value, str) else value
        if value:
            kept[field] = value
    return kept


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def notes_of(notes: Sequence[Notes], run: RunId, layers: int, features: int) -> dict[str, dict[str, Any]]:
    """Those of several files that are about a run, put together; a later file wins.

    Raises:
        UserError: a feature that the run does not have.
    """
    together: dict[str, dict[str, Any]] = {}
    for part in notes:
        if part.run is None or run.same(part.run):
            part.check_range(layers, features)
            together |= {key: together.get(key, {}) | note for key, note in part.features.items()}
    return together


def check_about(notes: Sequence[Notes], runs: Sequence[RunId]) -> None:
    """Whether each file is about one of the runs.

    Raises:
        UserError: one that is not.
    """
    for part in notes:
        if part.run is not None and not any(run.same(part.run) for run in runs):
            about = f"{part.run.get('title') or 'another run'}, step {part.run['step']}, begun {part.run['started']}"
            there = "; ".join(f"{run.title}, step {run.step}, begun {run.started}" for run in runs)
            raise UserError(
                f"--notes {part.path}: run: these notes are about {about}; here is {there}. Features of other weights "
                "are others. If you know better, set run to null in the file"
            )
