"""What the model still knows with its MLPs replaced."""

from __future__ import annotations

from typing import Any

from clt_lightning.report.draft import Draft
from clt_lightning.report.figures import curves
from clt_lightning.report.numbers import interval
from clt_lightning.report.page import Page

TASKS = ("zero_shot", "multilabel", "retrieval")
#: Those of zero-shot classification that are drawn
METRICS = {"top1": "top-1", "top5": "top-5", "per_class_recall": "class recall", "kl": "KL", "drop": "drop"}
_PLACE = ("kind", "first", "last", "tokens", "n")


def write(draft: Draft) -> None:
    """Writes every task's arms as a table, and the zero-shot curves."""
    evaluation = draft.source.evaluation or {}
    tables = {task: [_arms(draft, task, evaluation[task]["arms"])] for task in TASKS if evaluation.get(task)}
    draft.files["arms"] = tables
    if "zero_shot" in tables:
        arms = evaluation["zero_shot"]["arms"]
        for name, file, single in (("cascade", "cascade", False), ("single", "single_layers", True)):
            # by metric: the links follow what is shown
            draft.files[name] = {
                metric: _figure(draft, f"{file}_{metric}", arms, metric, single) + tables["zero_shot"]
                for metric in METRICS
                if curves.replacement_arms(arms, metric, single)
            }


def _figure(draft: Draft, file: str, arms: list[dict[str, Any]], metric: str, single: bool) -> list[str]:
    return draft.figure(file, lambda: curves.replacement(arms, metric, single, METRICS[metric]))


def _arms(draft: Draft, task: str, arms: list[dict[str, Any]]) -> str:
    metrics = list(dict.fromkeys(k for arm in arms for k, v in arm.items() if isinstance(v, dict) and "low" in v))
    head = [*_PLACE, *(name for m in metrics for name in (m, f"{m}_low", f"{m}_high"))]
    rows = [[arm[k] for k in _PLACE] + [part for m in metrics for part in interval(arm.get(m))] for arm in arms]
    return draft.table(task, head, rows)


PAGE = Page(
    name="cascade",
    title="Replacement",
    about="Windows to the last layer and single layers, beside controls, with intervals; COCO's and captions' metrics; "
    "attention replaced as well.",
    source="`zero_shot`, `multilabel`, `retrieval`, `attention`",
    addresses=("cascade", "cascade?metric=kl&tokens=cls", "cascade?tokens=patch&metric=drop"),
    write=write,
)
