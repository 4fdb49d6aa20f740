"""The run's record, as the summary page shows it."""

from __future__ import annotations

from typing import Any

from clt_lightning.core.values import flat

Rows = list[tuple[str, str]]
_SECTIONS = (
    ("Run", ("started", "finished", "step", "command", "seed", "precision", "git", "hardware")),
    ("Transcoder", ("transcoder",)),
    ("Backbone", ("clip",)),
    ("Data", ("data",)),
    ("Versions", ("versions",)),
)
_LONGEST = 600


def record_sections(run: dict[str, Any], evaluation: dict[str, Any] | None = None) -> list[tuple[str, Rows]]:
    """The `run` part of results.json as titled rows; what no section names comes under "More".

    Args:
        run: the record of the training.
        evaluation: the record of the command that evaluated it; where it is another one, its own section.
    """
    named = {key for _, keys in _SECTIONS for key in keys}
    # a section of one table shows that table's own keys
    sections = [(title, _rows(run, keys, named=len(keys) > 1)) for title, keys in _SECTIONS]
    sections.append(("More", _rows(run, tuple(key for key in run if key not in named), named=True)))
    if evaluation and evaluation != run:
        sections.append(("Evaluation", _rows(evaluation, ("started", "command", "git", "hardware"), named=True)))
    return [(title, rows) for title, rows in sections if rows]


def _rows(run: dict[str, Any], keys: tuple[str, ...], named: bool) -> Rows:
    return [row for key in keys for row in flatten(run.get(key), key if named else "")]


def flatten(value: Any, name: str) -> Rows:
    """A nested value as rows `a.b.c`, text; what is empty or None is left out, and what is long cut."""
    return [(key, shortened(text)) for key, text in flat(value, name)]


def shortened(text: str) -> str:
    """The text, or its beginning."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text)} characters)"
