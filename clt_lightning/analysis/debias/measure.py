"""How an edit is measured and its size chosen: the same for features, heads and directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from clt_lightning.analysis.debias.groups import scores
from clt_lightning.analysis.debias.predictor import Edit, Head, embed
from clt_lightning.analysis.debias.result import ArmResult
from clt_lightning.analysis.debias.setting import Setting
from clt_lightning.analysis.intervals import Interval, weighted_interval
from clt_lightning.core.progress import track

#: Features of an edit that no labels can choose
_UNSEEN_SIZE = 8


def arm(of: Setting, name: str, kind: str, edits: Sequence[Edit], **more: Any) -> ArmResult:
    """One arm on all test images and on collateral data: the mean over its edits."""
    what = ", ".join(filter(None, (more.get("run"), name, more.get("edit"))))
    work = track(edits, f"{what}: test", len(edits), "edits", show=of.o.progress)
    found = told(of, name, kind, [_right(of, edit) for edit in work], **more)
    found.collateral.update(_collateral(of, edits))
    return found


def told(of: Setting, name: str, kind: str, right: Sequence[np.ndarray], **more: Any) -> ArmResult:
    """An arm of which is known whether each test image is right."""
    groups = of.test.need_groups("test")
    found = scores(np.stack(right), of.before, groups, of.groups.n, of.o.draws, of.o.seed)
    return ArmResult(name, kind, more.pop("run", ""), found, **more)


def choose(
    of: Setting, make: Callable[[int], Edit], most: int, grouped: bool, what: str
) -> tuple[int, dict[int, float]]:
    """The best size, and what each size that may be chosen was judged by; 0 where no edit is better than none.

    Args:
        of: the setting.
        make: the edit of a size.
        most: the largest size there is.
        grouped: judge by the worst group of val and a balanced sample of train; else by accuracy on unbiased data.
        what: the arm, for the progress.
    """
    if not grouped and of.unbiased_val is None:
        return min(_UNSEEN_SIZE, most), {}
    tried: dict[int, float] = {}
    plain = 0.0
    sizes = (0, *(n for n in of.o.sizes if n <= most))
    for size in track(sizes, f"{what}: how many", len(sizes), "sizes", show=of.o.progress):
        edit = make(size)
        head = _recentred(of, edit)
        if grouped:
            parts = [of.embedded("val", edit), embed(of.clip, of.balanced.batches(), edit)]
            right = np.concatenate([head.right(part.embeddings, part.labels) for part in parts])
            groups = torch.cat([part.need_groups("val") for part in parts]).numpy()
            by_group = np.array([right[groups == i].mean() for i in range(of.groups.n)])
            value, mean = float(by_group.min()), float(by_group.mean())
        else:
            seen = of.embedded("val", edit, of=of.unbiased)
            value = mean = float(head.right(seen.embeddings, seen.labels).mean())
        plain = mean if size == 0 else plain
        if mean >= plain - of.o.most_lost:
            tried[size] = value
    return max(tried, key=lambda n: (tried[n], -n)), tried


def _recentred(of: Setting, edit: Edit) -> Head:
    """The head, its constants such that the mean logits of training images stay what they are without the edit."""
    moved = of.head(embed(of.clip, of.sample.batches(), edit).embeddings).mean(0)
    return Head(of.head.weight, of.head.bias + of.base_logits - moved, of.head.name)


def _right(of: Setting, edit: Edit) -> np.ndarray:
    head = _recentred(of, edit)
    seen = of.embedded("test", edit)
    return head.right(seen.embeddings, seen.labels)


def _collateral(of: Setting, edits: Sequence[Edit]) -> dict[str, Interval]:
    found = {}
    for name, (head, before) in of.collateral.items():
        rows = []
        for edit in edits:
            seen = of.embedded("test", edit, of=of.collateral_sets[name])
            rows.append(head.right(seen.embeddings, seen.labels))
        change = np.mean(rows, 0) - before
        found[name] = weighted_interval(len(change), partial(_mean, change), of.o.draws, of.o.seed)[0]
    return found


def _mean(change: np.ndarray, weights: np.ndarray) -> np.ndarray:
    wide = weights.astype(np.float64)
    found: np.ndarray = (wide @ change / wide.sum(1))[:, None]
    return found
