"""The typed result of an evaluation, and its files (docs/results-schema.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis import notebook
from clt_lightning.analysis.arms import Arm
from clt_lightning.analysis.attention_units import UnitsResult
from clt_lightning.analysis.contributions import ContributionScores
from clt_lightning.analysis.crossmodal import RetrievalResult
from clt_lightning.analysis.effects import EffectCheck
from clt_lightning.analysis.faithfulness import FaithfulnessResult
from clt_lightning.analysis.features import Features
from clt_lightning.analysis.intervals import Interval
from clt_lightning.analysis.multilabel import MultilabelResult, arm_json
from clt_lightning.analysis.population import PopulationCheck
from clt_lightning.analysis.retrieval import Retrieval
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import finite, read_json, write_json
from clt_lightning.runs.together import together

SCHEMA = 1


@dataclass(frozen=True)
class ArmResult:
    """Zero-shot classification of one arm.

    Attributes:
        arm: which variant.
        n: labelled images.
        top1: share of labelled images whose right class is on top.
        top5: share with the right class among the top five.
        per_class_recall: mean over classes of their top-1 recall.
        recall: `(C,)`, NaN for classes that do not occur.
        kl: KL of class probabilities from the original's, in nats, over all images.
        drop: top-1 of the original minus top-1 of the arm, paired.
    """

    arm: Arm
    n: int
    top1: Interval
    top5: Interval
    per_class_recall: Interval
    recall: np.ndarray
    kl: Interval
    drop: Interval

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        numbers = {name: getattr(self, name).to_json() for name in ("top1", "top5", "per_class_recall", "kl", "drop")}
        return arm_json(self.arm) | {"n": self.n, "recall": finite(self.recall.tolist())} | numbers


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured on a split.

    Attributes:
        split: its name.
        images: images seen.
        labelled: images with a label.
        classnames: class names, empty without.
        reconstruction: kind (`mse`, `fvu`, `r2`, `cosine`, `l0`, `dead`) -> token set -> `(L,)` float64.
        arms: zero-shot classification, the original first; empty without class names or labels.
        multilabel: the same arms on sets with several categories an image.
        retrieval: the same arms on sets with captions.
        contributions: by token set.
        faithfulness: one for each layer, token set, ranking and ablation.
        population: checks against training resamples.
        shares: what the parts of the model add to the logit and to the margin; None where it cannot be told.
        skip: whether the transcoder has a linear skip beside its features.
        attention: of sparse attention beside the transcoder; None where there is none.
        extra: results of the user's own analyses, by name.
        effect_check: predicted effects of features beside real ablation; None where it was not measured.
        train_images: training images behind the checks.
        keys: `(n,)` images, sorted.
        labels: `(n,)`, -1 for none.
        rank: `(arms, n)` place of the right class; empty where `arms` is empty, as are the next two.
        kl: `(arms, n)` KL from the original.
        predicted: `(arms, n)` top class.
        info: further plain entries: `seconds`, `options`, and of a run `step`, `checkpoint`, `run` (the command's
            record).
    """

    split: str
    images: int
    labelled: int
    classnames: list[str]
    reconstruction: dict[str, dict[str, Tensor]]
    arms: list[ArmResult]
    multilabel: list[MultilabelResult]
    retrieval: list[RetrievalResult]
    contributions: dict[str, ContributionScores]
    faithfulness: list[FaithfulnessResult]
    population: list[PopulationCheck]
    effect_check: EffectCheck | None
    shares: dict[str, dict[str, Interval]] | None
    train_images: int
    keys: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    rank: np.ndarray = field(repr=False)
    kl: np.ndarray = field(repr=False)
    predicted: np.ndarray = field(repr=False)
    skip: bool = False
    attention: UnitsResult | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return len(next(iter(next(iter(self.reconstruction.values())).values())))

    def arm(self, kind: str, first: int | None = None, last: int | None = None, tokens: str | None = None) -> ArmResult:
        """The zero-shot result of one arm, e.g. `arm("replaced", 0, 11, "all")`.

        Raises:
            UserError: it was not measured.
        """
        wanted = Arm(kind, first, last, tokens)
        for result in self.arms:
            if result.arm == wanted:
                return result
        known = ", ".join(result.arm.name for result in self.arms)
        raise UserError(f"there is no arm {wanted.name!r} in this evaluation; there are: {known or 'none'}")

    def to_json(self) -> dict[str, Any]:
        """The entry `evaluation.<split>` of results.json."""
        found: dict[str, Any] = finite(self.entry())
        return found

    def entry(self) -> dict[str, Any]:
        """The same before NaN and infinity become null."""
        checks = [check.to_json() for check in self.population]
        resamples = len(self.population[0].resampled) if self.population else 0
        return {
            "schema": SCHEMA,
            "split": self.split,
            "images": self.images,
            "labelled": self.labelled,
            "layers": self.n_layers,
            "token_sets": list(self.reconstruction["fvu"]),
            "classnames": self.classnames,
            **self.info,
            "reconstruction": {kind: by_layer(values) for kind, values in self.reconstruction.items()},
            "zero_shot": {"arms": [arm.to_json() for arm in self.arms]} if self.arms else None,
            "attention": None if self.attention is None else units_json(self.attention),
            "multilabel": {"arms": [arm.to_json() for arm in self.multilabel]} if self.multilabel else None,
            "retrieval": {"arms": [arm.to_json() for arm in self.retrieval]} if self.retrieval else None,
            "contributions": {name: _contribution_json(scores) for name, scores in self.contributions.items()},
            "faithfulness": [result.to_json() for result in self.faithfulness],
            "shares": {
                "skip": self.skip,
                "features": by_layer({name: scores.features_share for name, scores in self.contributions.items()}),
                "logit": None if self.shares is None else shares_json(self.shares),
            },
            "effects": None if self.effect_check is None else self.effect_check.to_json(),
            "population": {"train_images": self.train_images, "resamples": resamples, "checks": checks}
            if checks
            else None,
            "extra": self.extra,
        }

    def _repr_html_(self) -> str:
        fvu, l0 = self.reconstruction["fvu"], self.reconstruction["l0"]
        sets = list(fvu)
        head = ["layer", *(f"FVU, {name}" for name in sets), *(f"L0, {name}" for name in sets)]
        rows = [
            [f"{layer}", *(f"{fvu[s][layer]:.4f}" for s in sets), *(f"{l0[s][layer]:.1f}" for s in sets)]
            for layer in range(self.n_layers)
        ]
        parts = [notebook.table(head, rows, f"{self.split}: {self.images:,} images")]
        if self.arms:
            arms = [
                [a.arm.name, f"{100 * a.top1.value:.2f} %", f"{100 * a.drop.value:.2f}", f"{a.kl.value:.4f}"]
                for a in self.arms
            ]
            parts.append(notebook.table(["arm", "top-1", "points lost", "KL"], arms))
        return "".join(parts)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `evaluation/<split>.npz` holds."""
        by_class = {
            f"contributions_{name}_by_class": scores.by_class.cpu().numpy()
            for name, scores in self.contributions.items()
            if scores.by_class is not None
        }
        return {
            "keys": self.keys,
            "labels": self.labels,
            "arms": np.array([arm.arm.name for arm in self.arms], dtype=str),
            "rank": self.rank.astype(np.int32),
            "kl": self.kl,
            "predicted": self.predicted.astype(np.int32),
            **by_class,
            **({} if self.effect_check is None else self.effect_check.arrays()),
        }

    def save(self, run: str | Path, features: Features | None = None, retrieval: Retrieval | None = None) -> None:
        """Write it into a run's folder, with what else was collected: all together, or nothing.

        `results.json` (this split's entry; others stay), `evaluation/<split>.npz`, `features/`, `retrieval/`. Features
        and codes are given the step of this evaluation.

        Raises:
            UserError: the disk is full, or the folder cannot be written; what was there before is untouched.
        """
        folder = Path(run)
        folder.mkdir(parents=True, exist_ok=True)
        step = self.info.get("step")
        path = folder / "results.json"
        content = read_json(path) if path.exists() else {}
        content.setdefault("schema", SCHEMA)
        content.setdefault("evaluation", {})[self.split] = self.to_json()
        with together(folder) as parts:
            arrays = self.arrays() | ({} if step is None else {"step": np.array(step, dtype=np.int64)})
            np.savez_compressed(parts.place(f"evaluation/{self.split}.npz"), **arrays)  # type: ignore[arg-type]
            if features is not None:
                features.at(step).write(parts.place("features"))
            if retrieval is not None:
                dataclasses.replace(retrieval, step=step).write(parts.place("retrieval"))
            write_json(parts.place("results.json"), content)


def load_evaluation(run: str | Path, split: str = "test") -> dict[str, Any]:
    """The entry `evaluation.<split>` of a run's results.json, as documented in docs/results-schema.md.

    Raises:
        UserError: the split was not evaluated, or with another schema.
    """
    path = Path(run) / "results.json"
    found = read_json(path).get("evaluation", {}) if path.exists() else {}
    if split not in found:
        raise UserError(
            f"{path} holds no evaluation of split {split!r}: run `python -m clt_lightning test --run {run}`"
        )
    if found[split].get("schema") != SCHEMA:
        raise UserError(
            f"{path}: the evaluation of {split!r} has schema {found[split].get('schema')}, this version reads "
            f"{SCHEMA}: run `python -m clt_lightning test --run {run}` again"
        )
    result: dict[str, Any] = found[split]
    return result


def load_arrays(run: str | Path, split: str = "test") -> dict[str, np.ndarray]:
    """The arrays of `evaluation/<split>.npz`.

    Raises:
        UserError: the split was not evaluated.
    """
    path = Path(run) / "evaluation" / f"{split}.npz"
    if not path.is_file():
        raise UserError(f"{path} does not exist: run `python -m clt_lightning test --run {run}`")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def load_step(run: str | Path, split: str = "test") -> int | None:
    """The step of the weights behind `evaluation/<split>.npz`; None where that is not known."""
    with np.load(Path(run) / "evaluation" / f"{split}.npz", allow_pickle=False) as file:
        return int(file["step"]) if "step" in file.files else None


def units_json(found: UnitsResult) -> dict[str, Any]:
    """Sparse attention's tables, by layer; and `heads`, one entry a layer, or null."""
    tables: dict[str, Any] = {kind: by_layer(sets) for kind, sets in found.tables.items()}
    return tables | {"heads": None if found.spans is None else found.spans.numbers()}


def by_layer(tables: Mapping[str, Tensor]) -> dict[str, Any]:
    """Numbers `(L,)` by token set, as results.json holds them: the layers', and their mean."""
    return {name: {"layers": values.tolist(), "mean": float(values.mean())} for name, values in tables.items()}


def shares_json(shares: Mapping[str, Mapping[str, Interval]]) -> dict[str, Any]:
    """Who makes the logit and the margin, as results.json holds it."""
    return {target: {part: value.to_json() for part, value in parts.items()} for target, parts in shares.items()}


def _contribution_json(scores: ContributionScores) -> dict[str, Any]:
    def matrix(values: Tensor) -> list[list[float | None]]:
        return values.tolist()

    def or_none(values: Tensor | None) -> list[list[float | None]] | None:
        return None if values is None else matrix(values)

    def last_column(by_class: Tensor | None) -> list[list[float | None] | None] | None:
        if by_class is None:
            return None
        rows = by_class[:, :, -1]
        return [None if bool(torch.isnan(row).all()) else row.tolist() for row in rows]

    return {
        "tokens": scores.tokens,
        "uncentred": matrix(scores.uncentred),
        "centred": matrix(scores.centred),
        "std_over_classes": or_none(scores.std_over_classes()),
        "final_by_class": last_column(scores.by_class),
        "whole_uncentred": matrix(scores.whole_uncentred),
        "whole_centred": matrix(scores.whole_centred),
        "whole_std_over_classes": or_none(scores.whole_std_over_classes()),
        "whole_final_by_class": last_column(scores.whole_by_class),
    }
