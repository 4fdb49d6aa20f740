"""Erasing a concept: the top features behind a class at their mean, what it costs the class and the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clt_lightning.analysis.circuits.concepts import mean_codes
from clt_lightning.analysis.debias.choose import ordered
from clt_lightning.analysis.debias.controls import matched
from clt_lightning.analysis.debias.predictor import Head, Reservoir, embed
from clt_lightning.analysis.debias.relevance import relevance_of
from clt_lightning.analysis.intervals import Interval, mean_intervals
from clt_lightning.analysis.target import class_index
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.mean_ablation import Feature, mean_ablated

SIZES = (0, 1, 2, 5, 10, 20, 50)
ARMS = ("upstream", "random")


@dataclass(frozen=True)
class Erasure:
    """Accuracy with more and more of a class's features at their mean.

    Attributes:
        name: the class.
        sizes: how many features.
        accuracy: by arm (`upstream`, `random`: of equal activity, where any were drawn) and part (`class`, `others`),
            one a size.
        features: the upstream ones, the strongest first.
        images: test images of the class, and of the others.
    """

    name: str
    sizes: tuple[int, ...]
    accuracy: dict[str, dict[str, list[Interval]]]
    features: tuple[Feature, ...]
    images: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        accuracy = {
            arm: {part: [found.to_json() for found in row] for part, row in parts.items()}
            for arm, parts in self.accuracy.items()
        }
        return {
            "class": self.name,
            "sizes": list(self.sizes),
            "features": [list(place) for place in self.features],
            "images": {"class": self.images[0], "others": self.images[1]},
            "accuracy": accuracy,
        }


def erase(
    run: Any,
    name: str,
    sizes: Sequence[int] = SIZES,
    images: int = 64,
    others: int = 512,
    random: int = 3,
    draws: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Erasure:
    """The curve of one class of a run's data, by its zero-shot head (or the one that `probe` has made).

    A class's concepts are the features of the largest mean relevance for it on training images of the class; means are
    over training images of all classes; accuracy is on test images.

    Args:
        run: an opened run.
        name: the class.
        sizes: how many of its concepts are at their mean.
        images: training images of the class.
        others: test images of the other classes, and training images behind the means.
        random: draws of random features of equal activity; 0: none.
        draws: resamples of images.
        seed: of all that is drawn.
        progress: say how far it is.

    Raises:
        UserError: no such class, none of its images, or no head.
    """
    clip, clt = run.clip, run.transcoder
    matrix = run.require_head("no class to erase")
    which = class_index(matrix, run.datamodule.classnames, name)
    head = Head.zero_shot(matrix, clip.logit_scale)
    train, test = ({"class": Reservoir(images, seed), "all": Reservoir(others, seed + 1)} for _ in range(2))
    test["class"] = Reservoir(10**9, seed)
    for split, kept in (("train", train), ("test", test)):
        for batch in run.batches(split):
            if "label" not in batch:
                raise UserError(f"{split} has no labels: erasing a class needs images of it")
            for image, label in zip(batch["image"], batch["label"].tolist()):
                if label == which:
                    kept["class"].add(image, label, -1, 0)
                if label >= 0 and (split == "train" or label != which):
                    kept["all"].add(image, label, -1, 0)
        if not kept["class"].sampled:
            raise UserError(f"{split} has no image of class {name!r}")
    if not test["all"].sampled:
        raise UserError("test has no image of another class: nothing says what erasing costs the others")
    means = mean_codes(clip, clt, train["all"].sample().images)
    found = relevance_of(clip, clt, train["class"].sample(), head, means, progress=progress)
    order = ordered(found.values.mean(0).clamp(min=0))
    activity = found.activity.mean(0)
    sizes = tuple(dict.fromkeys(min(n, len(order)) for n in sizes))
    parts = {"class": test["class"].sample(), "others": test["all"].sample()}
    accuracy: dict[str, dict[str, list[Interval]]] = {
        arm: {part: [] for part in parts} for arm in ARMS if random or arm != "random"
    }
    for n in sizes:
        sets = {"upstream": [order[:n]], "random": [matched(order[:n], activity, seed + i) for i in range(random)]}
        for arm in accuracy:
            for part, sample in parts.items():
                rows = []
                for features in sets[arm]:
                    with mean_ablated(clip, clt, features, means):
                        seen = embed(clip, sample.batches())
                    rows.append(head.right(seen.embeddings, seen.labels))
                mean = np.mean(rows, 0)[:, None]
                accuracy[arm][part].append(mean_intervals(mean, draws, seed)[0])
    chosen = tuple(order[: max(sizes)])
    return Erasure(name, sizes, accuracy, chosen, (len(parts["class"].labels), len(parts["others"].labels)))
