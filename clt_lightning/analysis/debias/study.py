"""The protocol: a biased predictor, one edit chosen on train and val, made on all test images, beside its controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.circuits.concepts import mean_codes
from clt_lightning.analysis.debias.choose import by_circuits, by_coactivation, by_codes, by_target, in_circuit, ordered
from clt_lightning.analysis.debias.controls import Heads, cue_directions, matched, projected
from clt_lightning.analysis.debias.groups import Groups, Scores, scores
from clt_lightning.analysis.debias.predictor import Edit, Embedded, Head, Reservoir, Sample, embed, no_groups
from clt_lightning.analysis.debias.relevance import Relevance, relevance_of
from clt_lightning.analysis.debias.truth import CARRIES, auroc, cue_truth
from clt_lightning.analysis.intervals import Interval, weighted_interval
from clt_lightning.core.errors import UserError
from clt_lightning.core.say import say
from clt_lightning.interventions.mean_ablation import Feature, check_features, mean_ablated

#: How an arm's features or heads are found, in words
WAYS = {
    "circuits": "circuits of the attribute's values, what is in one alone",
    "codes": "features of the circuits, by how well codes tell the attribute",
    "coactivation": "influence, and co-activation that unbiased images lack",
    "nodes": "named by hand",
}
NEEDS_GROUPS = ("circuits", "codes")
#: Features of an edit that no labels can choose
_UNSEEN_SIZE = 8


@dataclass(frozen=True)
class DebiasOptions:
    """What is measured.

    Attributes:
        head: `probe`, learned on the training split, or `zero_shot`.
        ways: any of `WAYS`.
        sizes: how many features or heads an edit may have.
        group_images: training images of each group that are looked at; images: training images for means and
            influence, and unbiased ones.
        random: draws of random features.
        most_lost: how much of the accuracy on choice images an edit may cost, as a share.
        draws: resamples of images; seed: of all that is drawn.
        progress: say how far it is.
    """

    head: str = "probe"
    ways: tuple[str, ...] = ("circuits", "codes", "coactivation")
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    group_images: int = 64
    images: int = 512
    random: int = 3
    most_lost: float = 0.01
    draws: int = 1000
    seed: int = 0
    progress: bool = False


@dataclass(frozen=True)
class ArmResult:
    """One arm.

    Attributes:
        name: in words.
        kind: `none`, one of `WAYS`, `random`, `heads`, `projection`, `retrained`, `unbiased`.
        run: which run's features; empty for arms without.
        scores: on all test images.
        chosen: features or heads of the edit.
        sizes: by size tried, the measure on the choice images that it was chosen by.
        auc: of the way's score against the planted cue, where that is known.
        collateral: by data set, accuracy less that without the edit.
    """

    name: str
    kind: str
    run: str
    scores: Scores
    chosen: tuple[tuple[int, int], ...] = ()
    sizes: dict[int, float] = field(default_factory=dict)
    auc: float | None = None
    collateral: dict[str, Interval] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "run": self.run,
            "chosen": [list(place) for place in self.chosen],
            "sizes": {str(n): value for n, value in self.sizes.items()},
            "auc": self.auc,
            "collateral": {name: found.to_json() for name, found in self.collateral.items()},
            **self.scores.to_json(),
        }


@dataclass(frozen=True)
class DebiasResult:
    """All arms on one test split.

    Attributes:
        arms: the first one is the untouched model.
        groups: their names; counts: test images of each.
        head: the predictor, in words.
        collateral: accuracy of the untouched model by data set.
        notes: what was left out, and why.
    """

    arms: list[ArmResult]
    groups: tuple[str, ...]
    counts: tuple[int, ...]
    head: str
    collateral: dict[str, float]
    notes: list[str]

    def arm(self, kind: str, run: str | None = None) -> ArmResult:
        """The first arm of a kind (of a run).

        Raises:
            KeyError: there is none.
        """
        for arm in self.arms:
            if arm.kind == kind and (run is None or arm.run == run):
                return arm
        raise KeyError(kind)

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        return {
            "groups": list(self.groups),
            "counts": list(self.counts),
            "head": self.head,
            "collateral": self.collateral,
            "notes": self.notes,
            "arms": [arm.to_json() for arm in self.arms],
        }


def debias(
    runs: Mapping[str, Any],
    data: Any = None,
    unbiased: Any = None,
    collateral: Mapping[str, Any] | None = None,
    nodes: Sequence[Feature] = (),
    options: DebiasOptions | None = None,
) -> DebiasResult:
    """Measure every arm on the test split of some data whose groups are known.

    Args:
        runs: opened runs by name, on the same backbone: arms of features are made with each one's transcoder.
        data: the data module, with the backbone's transform; None: the first run's.
        unbiased: a data module in which the cue does not go with the class: for `coactivation`, and for the predictor
            that the biased one is held against. None leaves both out.
        collateral: other data modules by name.
        nodes: features named by hand, for the first run.
        options: what is measured.

    Raises:
        UserError: no labels, no groups, one class, an empty group, a feature that does not exist, or other backbones.
    """
    return _Study(runs, data, unbiased, collateral or {}, tuple(nodes), options or DebiasOptions()).go()


class _Study:
    def __init__(
        self,
        runs: Mapping[str, Any],
        data: Any,
        unbiased: Any,
        collateral: Mapping[str, Any],
        nodes: tuple[Feature, ...],
        options: DebiasOptions,
    ) -> None:
        self.runs, self.o, self.nodes, self.collateral_sets = dict(runs), options, nodes, dict(collateral)
        first = next(iter(self.runs.values()))
        self.clip, self.data, self.unbiased = first.clip, data or first.datamodule, unbiased
        unknown = sorted(set(options.ways) - set(WAYS))
        if unknown:
            raise UserError(f"there is no way {unknown[0]!r}; there are: {', '.join(WAYS)}")
        mine = first.clip.describe().get("weights_sha256")
        for name, run in self.runs.items():
            if run.clip.describe().get("weights_sha256") != mine:
                raise UserError(f"{name}: its backbone is another one than the first run's: arms are compared on one")
        for module in (self.data, unbiased, *self.collateral_sets.values()):
            if module is not None:
                module.transform = first.clip.preprocess
        self.notes: list[str] = []

    # -- data --------------------------------------------------------------------------------------------------------

    def go(self) -> DebiasResult:
        """All of it."""
        o, data = self.o, self.data
        data.setup("test")
        names = data.classnames
        if names is not None and len(names) < 2:
            raise UserError("the data have one class: there is nothing that a cue could go with")
        for split in ("train", "val", "test"):  # before the long passes
            first = next(iter(data.eval_dataloader(split)), {"group": None})
            if "group" not in first:
                raise no_groups(split)
        by_group, anyone = Reservoir(o.group_images, o.seed), Reservoir(o.images, o.seed + 1)

        def keep(batch: dict[str, Any]) -> None:
            told = batch.get("group")
            groups = [-1] * len(batch["label"]) if told is None else told.tolist()
            for image, label, group in zip(batch["image"], batch["label"].tolist(), groups):
                by_group.add(image, label, group, group)
                anyone.add(image, label, group, 0)

        self.train = self._embedded("train", keep=keep)
        train_groups = self.train.need_groups("train")
        self.groups = Groups.of(self.train.labels, train_groups, data.groupnames)
        self.val, self.test = self._embedded("val"), self._embedded("test")
        for name, part in (("val", self.val), ("test", self.test)):
            self.groups.check(part.need_groups(name), name)
        assert self.test.groups is not None
        self.balanced, self.sample = by_group.sample(), anyone.sample()
        self.n_classes = len(names) if names else int(self.train.labels.max()) + 1
        self.head = self._head(names)
        self.before = self.head.right(self.test.embeddings, self.test.labels)
        self.base_logits = self.head(embed(self.clip, self.sample.batches()).embeddings).mean(0)
        self._unbiased()
        self._collateral()
        arms = [self._arm("no edit", "none", "", [self.before])]
        for name, run in self.runs.items():
            arms += self._of_run(name, run, first=name == next(iter(self.runs)))
        arms += self._controls()
        counts = torch.bincount(self.test.groups, minlength=self.groups.n)
        return DebiasResult(
            arms, self.groups.names, tuple(counts.tolist()), self.head.name, self.collateral_before, self.notes
        )

    def _embedded(
        self, split: str, edit: Edit | None = None, keep: Callable[[dict[str, Any]], None] | None = None, of: Any = None
    ) -> Embedded:
        what = split if edit is None and self.o.progress else ""
        return embed(self.clip, (of or self.data).eval_dataloader(split), edit, what, keep=keep)

    def _head(self, names: Sequence[str] | None) -> Head:
        if self.o.head == "probe":
            return Head.probe(self.train, self.val, self.n_classes, "linear probe of the training split")
        if self.o.head != "zero_shot":
            raise UserError(f"the head is probe or zero_shot, got {self.o.head!r}")
        if not names or not self.clip.names_classes(names, self.data.templates):
            raise UserError("zero-shot prompts need class names, templates and a text tower: take --head probe")
        return Head.zero_shot(self.clip.head_for(names, self.data.templates), self.clip.logit_scale)

    def _unbiased(self) -> None:
        """The predictor learned on unbiased data, and a sample of them."""
        self.unbiased_head: Head | None = None
        self.unbiased_sample: Sample | None = None
        self.unbiased_labels = False
        if self.unbiased is None:
            return
        self.unbiased.setup("test")
        kept = Reservoir(self.o.images, self.o.seed + 2)

        def keep(batch: dict[str, Any]) -> None:
            for image, label in zip(batch["image"], batch["label"].tolist()):
                kept.add(image, label, -1, 0)

        train = self._embedded("train", keep=keep, of=self.unbiased)
        self.unbiased_sample = kept.sample()
        self.unbiased_labels = self.unbiased.classnames == self.data.classnames
        if self.unbiased_labels:
            self.unbiased_val = self._embedded("val", of=self.unbiased)
            self.unbiased_head = Head.probe(train, self.unbiased_val, self.n_classes, "linear probe of unbiased data")
        else:
            self.notes.append(
                "the unbiased data have other classes: co-activation is with the class's most influential feature, and "
                "there is no predictor of unbiased data"
            )

    def _collateral(self) -> None:
        self.collateral_heads: dict[str, Head] = {}
        self.collateral_right: dict[str, np.ndarray] = {}
        for name, module in self.collateral_sets.items():
            module.setup("test")
            if not self.clip.names_classes(module.classnames, module.templates):
                raise UserError(f"collateral {name}: it has no class names and templates, so there is no accuracy")
            head = Head.zero_shot(self.clip.head_for(module.classnames, module.templates), self.clip.logit_scale)
            seen = self._embedded("test", of=module)
            self.collateral_heads[name] = head
            self.collateral_right[name] = head.right(seen.embeddings, seen.labels)
        self.collateral_before = {name: float(right.mean()) for name, right in self.collateral_right.items()}

    # -- arms --------------------------------------------------------------------------------------------------------

    def _arm(
        self,
        name: str,
        kind: str,
        run: str,
        right: Sequence[np.ndarray],
        edits: Sequence[Edit] = (),
        **more: Any,
    ) -> ArmResult:
        assert self.test.groups is not None
        found = scores(np.stack(right), self.before, self.test.groups, self.groups.n, self.o.draws, self.o.seed)
        collateral = {}
        for of, head in self.collateral_heads.items():
            if not edits:
                continue
            rows = []
            for edit in edits:
                seen = self._embedded("test", edit, of=self.collateral_sets[of])
                rows.append(head.right(seen.embeddings, seen.labels))
            change = np.mean(rows, 0) - self.collateral_right[of]
            collateral[of] = weighted_interval(
                len(change),
                partial(_mean, change),
                self.o.draws,
                self.o.seed,
            )[0]
        return ArmResult(name, kind, run, found, collateral=collateral, **more)

    def _recentred(self, edit: Edit) -> Head:
        """The head, its constants such that the mean logits of training images stay what they are without the edit."""
        moved = self.head(embed(self.clip, self.sample.batches(), edit).embeddings).mean(0)
        return Head(self.head.weight, self.head.bias + self.base_logits - moved, self.head.name)

    def _right(self, edit: Edit) -> np.ndarray:
        head = self._recentred(edit)
        seen = self._embedded("test", edit)
        return head.right(seen.embeddings, seen.labels)

    def _choose(self, make: Callable[[int], Edit], most: int, grouped: bool) -> tuple[int, dict[int, float]]:
        """The best size on val and a balanced sample of train; 0 where no edit is better than none."""
        if not grouped and not self.unbiased_labels:
            return min(_UNSEEN_SIZE, most), {}
        tried: dict[int, float] = {}
        plain = 0.0
        for size in (0, *(n for n in self.o.sizes if n <= most)):
            edit = make(size)
            head = self._recentred(edit)
            if grouped:
                parts = [self._embedded("val", edit), embed(self.clip, self.balanced.batches(), edit)]
                right = np.concatenate([head.right(part.embeddings, part.labels) for part in parts])
                told = torch.cat([part.need_groups("val") for part in parts]).numpy()
                of = np.array([right[told == i].mean() for i in range(self.groups.n)])
                value, mean = float(of.min()), float(of.mean())
            else:
                seen = self._embedded("val", edit, of=self.unbiased)
                value = mean = float(head.right(seen.embeddings, seen.labels).mean())
            plain = mean if size == 0 else plain
            if mean >= plain - self.o.most_lost:
                tried[size] = value
        best = max(tried, key=lambda n: (tried[n], -n))
        return best, tried

    def _of_run(self, name: str, run: Any, first: bool) -> list[ArmResult]:
        o, clip, clt = self.o, self.clip, run.transcoder
        if o.progress:
            say(f"{name}: mean codes and relevance")
        means = mean_codes(clip, clt, self.sample.images)
        told = partial(relevance_of, clip, clt, head=self.head, means=means, progress=o.progress)
        anyone = told(self.sample)
        activity = anyone.activity.mean(0)
        truth = self._truth(run)
        arms = []
        for way in o.ways:
            found = self._scored(way, told, anyone)
            if found is None:
                continue
            order = ordered(found, in_circuit(anyone))  # what does nothing for any class is not worth an edit
            if not order:
                self.notes.append(f"{name}, {way}: no feature is found")
                continue
            make = lambda n, order=order: partial(mean_ablated, clip, clt, order[:n], means)  # noqa: E731
            size, tried = self._choose(make, len(order), way in NEEDS_GROUPS)
            auc = None if truth is None else _auc(found, *truth)
            arms += self._with_random(name, way, order[:size], clt, means, activity, sizes=tried, auc=auc)
        if first and self.nodes:
            check_features(clip, clt, self.nodes, means)
            arms += self._with_random(name, "nodes", list(self.nodes), clt, means, activity)
        return arms

    def _with_random(
        self, name: str, way: str, chosen: list[Feature], clt: Any, means: Tensor, activity: Tensor, **more: Any
    ) -> list[ArmResult]:
        edit = partial(mean_ablated, self.clip, clt, chosen, means)
        arms = [self._arm(f"{way}", way, name, [self._right(edit)], [edit], chosen=tuple(chosen), **more)]
        if chosen and self.o.random:
            sets = [matched(chosen, activity, self.o.seed + i) for i in range(self.o.random)]
            edits = [partial(mean_ablated, self.clip, clt, some, means) for some in sets]
            arms.append(
                self._arm(
                    f"random, as {way}", "random", name, [self._right(e) for e in edits], edits, chosen=tuple(sets[0])
                )
            )
        return arms

    def _scored(self, way: str, told: Callable[..., Relevance], anyone: Relevance) -> Tensor | None:
        if way in NEEDS_GROUPS:
            of_groups = told(self.balanced)
            return (by_circuits if way == "circuits" else by_codes)(of_groups, self.groups)
        if way != "coactivation":
            return None
        if self.unbiased_sample is None:
            note = "coactivation is left out: it needs data in which the cue does not go with the class (--unbiased)"
            if note not in self.notes:
                self.notes.append(note)
            return None
        if self.unbiased_labels:
            return by_coactivation(anyone, told(self.unbiased_sample))
        # labels of other classes: only codes are looked at
        zeros = torch.zeros_like(self.unbiased_sample.labels)
        return by_target(anyone, told(Sample(self.unbiased_sample.images, zeros, zeros)))

    def _truth(self, run: Any) -> tuple[Tensor, Tensor] | None:
        spurious = getattr(self.data, "spurious", None)
        if spurious is None:
            return None
        return cue_truth(self.clip, run.transcoder, spurious, size=self.data.parameters["size"])

    def _controls(self) -> list[ArmResult]:
        o, clip = self.o, self.clip
        arms = []
        try:
            heads = Heads(clip)
            means, order = heads.means(self.sample), heads.ranked(self.balanced, self.head, self.groups)
        except UserError as error:
            self.notes.append(f"heads are left out: {error}")
        else:

            def make(n: int) -> Edit:
                return partial(heads.ablated, order[:n], means)

            size, tried = self._choose(make, len(order), True)
            edit = make(size)
            arms.append(
                self._arm(
                    "heads' direct writing",
                    "heads",
                    "",
                    [self._right(edit)],
                    [edit],
                    chosen=tuple(order[:size]),
                    sizes=tried,
                )
            )
        basis = cue_directions(self.train, self.val, self.groups, o.seed)
        edit = partial(projected, clip, basis, self.train.embeddings.mean(0))
        arms.append(self._arm("probe direction projected out", "projection", "", [self._right(edit)], [edit]))
        train, val = (
            part.select(self.groups.balanced(part.need_groups(""), o.seed)) for part in (self.train, self.val)
        )
        retrained = Head.probe(train, val, self.n_classes, "")
        arms.append(
            self._arm(
                "head retrained, groups balanced",
                "retrained",
                "",
                [retrained.right(self.test.embeddings, self.test.labels)],
            )
        )
        if self.unbiased_head is not None:
            right = self.unbiased_head.right(self.test.embeddings, self.test.labels)
            arms.append(self._arm("head of unbiased data", "unbiased", "", [right]))
        return arms


def _mean(change: np.ndarray, weights: np.ndarray) -> np.ndarray:
    wide = weights.astype(np.float64)
    found: np.ndarray = (wide @ change / wide.sum(1))[:, None]
    return found


def _auc(score: Tensor, truth: Tensor, on: Tensor) -> float | None:
    """How well a score finds the features that carry the cue, among those that are on."""
    carries = on & (truth >= CARRIES)
    others = on & ~carries
    if not bool(carries.any()) or not bool(others.any()):
        return None
    return float(auroc(score[carries][:, None], score[others][:, None]))
