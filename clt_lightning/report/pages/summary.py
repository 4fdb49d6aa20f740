"""The front page: what was trained, on what, and the numbers to look at first."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import yaml

from clt_lightning.report.catalogue import columns
from clt_lightning.report.draft import Draft
from clt_lightning.report.page import Page
from clt_lightning.report.record import record_sections
from clt_lightning.report.source import read_config
from clt_lightning.report.training import training_curves

#: Features on the front page
CLEAREST = 12
#: ... active on so many images or more: of fewer, monosemanticity says little
ENOUGH = 20


def write(draft: Draft) -> None:
    """Writes `summary`."""
    source = draft.source
    config = read_config(source.run)
    draft.data(
        "summary",
        {
            "record": record_sections(source.record, (source.evaluation or {}).get("run")),
            "config": config,
            "changes": _changes(draft, config),
            "seconds": _duration(source.record),
            "steps": source.record.get("step"),
            "curves": training_curves(source.run),
            "clearest": clearest(draft),
        },
    )


def clearest(draft: Draft) -> list[list[int]]:
    """The features with the largest monosemanticity on `ENOUGH` images or more, `[layer, feature]`, best first."""
    features = draft.source.features
    if features is None:
        return []
    found: list[tuple[float, int, int]] = []
    for layer in range(features.info["layers"]):
        column = columns(features, layer)
        score = np.where(column["images"] >= ENOUGH, column["monosemanticity"], np.nan)
        best = np.argsort(-np.nan_to_num(score, nan=-2.0), kind="stable")[:CLEAREST]
        found += [(-float(score[f]), layer, int(f)) for f in best if np.isfinite(score[f])]
    return [[layer, feature] for _, layer, feature in sorted(found)[:CLEAREST]]


def _changes(draft: Draft, config: str | None) -> list[tuple[str, str | None, str]] | None:
    if config is None or draft.options.changes is None:
        return None
    content: Any = yaml.safe_load(config)
    return draft.options.changes(content) if isinstance(content, dict) else None


def _duration(record: dict[str, Any]) -> float | None:
    """Seconds from a training's last start to its end; None while it has not ended."""
    try:
        began, ended = (datetime.fromisoformat(record[key]) for key in ("started", "finished"))
    except (KeyError, TypeError, ValueError):
        return None
    return (ended - began).total_seconds()


PAGE = Page(
    name="summary",
    title="Summary",
    about="The numbers to look at first, the clearest features, the training, and the run's record.",
    source="`results.json`, the events",
    addresses=("",),
    write=write,
)
