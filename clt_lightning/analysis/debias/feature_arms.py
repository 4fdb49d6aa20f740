"""Arms of one run's features: found in some way, edited in some way, beside random ones of equal activity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.circuits.concepts import mean_codes
from clt_lightning.analysis.debias.choose import by_circuits, by_coactivation, by_codes, by_target, in_circuit, ordered
from clt_lightning.analysis.debias.codes import MeanCodes, codes_of
from clt_lightning.analysis.debias.controls import matched
from clt_lightning.analysis.debias.measure import arm, choose
from clt_lightning.analysis.debias.options import NEEDS_GROUPS
from clt_lightning.analysis.debias.predictor import Edit, Sample
from clt_lightning.analysis.debias.regression import Regression, regressed_out
from clt_lightning.analysis.debias.relevance import Relevance, relevance_of
from clt_lightning.analysis.debias.result import ArmResult
from clt_lightning.analysis.debias.setting import Setting
from clt_lightning.analysis.debias.truth import CARRIES, auroc, cue_truth
from clt_lightning.analysis.debias.weights import attribute_weights, common_weights, lost_weights
from clt_lightning.core.say import say
from clt_lightning.interventions.mean_ablation import Feature, check_features, mean_ablated


class FeatureArms:
    """All arms of one run.

    Args:
        of: what arms share.
        name: of the run.
        run: the opened run.
    """

    def __init__(self, of: Setting, name: str, run: Any) -> None:
        self.of, self.name, self.clip, self.clt = of, name, of.clip, run.transcoder
        if of.o.progress:
            say(f"{name}: mean codes and relevance")
        self.means = mean_codes(self.clip, self.clt, of.sample.images)
        self.anyone = self._relevance(of.sample)
        self.activity = self.anyone.activity.mean(0)

    def measure(self, nodes: Sequence[Feature] = ()) -> list[ArmResult]:
        """Every way with every edit.

        Args:
            nodes: features named by hand.
        """
        arms = []
        truth = self._truth()
        if truth is not None:
            self._tell_frequency(*truth)
        for way in self.of.o.ways:
            found = self._scored(way)
            if found is None:
                continue
            order = ordered(found, in_circuit(self.anyone))  # what does nothing for any class is not worth an edit
            if not order:
                self.of.note(f"{self.name}, {way}: no feature is found")
                continue
            auc = None if truth is None else _auc(found, *truth)
            for edit in self.of.o.edits:
                arms += self._arms(way, edit, order, True, auc)
        if nodes:
            check_features(self.clip, self.clt, nodes, self.means)
            for edit in self.of.o.edits:
                arms += self._arms("nodes", edit, list(nodes), False, None)
        return arms

    def _arms(self, way: str, edit: str, order: list[Feature], choice: bool, auc: float | None) -> list[ArmResult]:
        o = self.of.o
        size = len(order)
        sizes: dict[int, float] = {}
        if choice:
            make = partial(self._first, way, edit, order)
            what = f"{self.name}, {way}, {edit}"
            size, sizes = choose(self.of, make, len(order), way in NEEDS_GROUPS, what)
        chosen = order[:size]
        shared = {"run": self.name, "edit": edit}
        edits = [self._edit(way, edit, chosen)]
        arms = [arm(self.of, way, way, edits, chosen=tuple(chosen), sizes=sizes, auc=auc, **shared)]
        if chosen and o.random:
            sets = [matched(chosen, self.activity, o.seed + i) for i in range(o.random)]
            edits = [self._edit(way, edit, some) for some in sets]
            arms.append(arm(self.of, f"random, as {way}", "random", edits, chosen=tuple(sets[0]), **shared))
        return arms

    def _first(self, way: str, edit: str, order: list[Feature], n: int) -> Edit:
        return self._edit(way, edit, order[:n])

    def _edit(self, way: str, edit: str, features: list[Feature]) -> Edit:
        """The edit of some features; random ones are weighted as the way's own are."""
        if edit == "ablate" or not features:
            return partial(mean_ablated, self.clip, self.clt, features, self.means)
        of = self.of
        if way != "coactivation":
            seen = self._codes_of_groups
            weights = attribute_weights(seen, of.groups, features)
            weight = 1 / torch.bincount(seen.groups, minlength=of.groups.n)[seen.groups].float()
        else:
            seen, weight = self._codes_of_unbiased, None
            known = of.unbiased_head is not None
            weights = lost_weights(self._codes_of_anyone, seen, features) if known else common_weights(seen, features)
        fit = Regression.fit(
            features,
            weights,
            self._codes_of_anyone.picked(features).mean(0),
            seen.picked(features),
            seen.embeddings,
            seen.labels,
            weight,
        )
        return partial(regressed_out, self.clip, self.clt, fit)

    @cached_property
    def _of_groups(self) -> Relevance:
        return self._relevance(self.of.balanced)

    @cached_property
    def _samples(self) -> tuple[MeanCodes, MeanCodes]:
        """Mean codes of training images with each group's share, and of any; found in one pass."""
        of, o = self.of, self.of.o
        groups = of.train.need_groups("train")
        by_group = of.groups.at_most(groups, max(1, o.code_images // of.groups.n), o.seed)
        anyone = _drawn(len(of.train), o.code_images, o.seed + 1)
        both = torch.cat([by_group, anyone]).unique()
        found = codes_of(self.clip, self.clt, of.data.eval_dataloader("train"), both, self._told("codes of train"))
        return found.select(torch.searchsorted(both, by_group)), found.select(torch.searchsorted(both, anyone))

    @property
    def _codes_of_groups(self) -> MeanCodes:
        return self._samples[0]

    @property
    def _codes_of_anyone(self) -> MeanCodes:
        return self._samples[1]

    @cached_property
    def _codes_of_unbiased(self) -> MeanCodes:
        of, o = self.of, self.of.o
        assert of.unbiased_train is not None
        chosen = _drawn(len(of.unbiased_train), o.code_images, o.seed + 2)
        what = self._told("codes of unbiased images")
        found = codes_of(self.clip, self.clt, of.unbiased.eval_dataloader("train"), chosen, what)
        # labels of other classes: only codes are looked at
        return found if of.unbiased_head is not None else replace(found, labels=torch.zeros_like(found.labels))

    def _told(self, what: str) -> str:
        return f"{self.name}, {what}" if self.of.o.progress else ""

    def _relevance(self, sample: Sample) -> Relevance:
        return relevance_of(self.clip, self.clt, sample, self.of.head, self.means, progress=self.of.o.progress)

    def _scored(self, way: str) -> Tensor | None:
        of = self.of
        if way == "circuits":
            return by_circuits(self._of_groups, of.groups)
        if way == "codes":
            return by_codes(self._codes_of_groups, of.groups)
        if way != "coactivation":
            return None
        if of.unbiased_train is None:
            of.note("coactivation is left out: it needs data in which the cue does not go with the class (--unbiased)")
            return None
        if of.unbiased_head is None:
            return by_target(self.anyone, self._codes_of_unbiased)
        return by_coactivation(self._codes_of_anyone, self._codes_of_unbiased)

    def _tell_frequency(self, truth: Tensor, on: Tensor) -> None:
        """What the AUC is of a score that knows nothing of the cue: a feature that is rarely on moves in few pairs."""
        frequency = _auc((self.anyone.activity != 0).float().mean(0), truth, on)
        if frequency is not None:
            self.of.note(
                f"{self.name}: how often a feature is on tells carriers of the cue with an AUC of "
                f"{frequency:.3f}, knowing nothing of the cue; read the AUCs beside it"
            )

    def _truth(self) -> tuple[Tensor, Tensor] | None:
        data = self.of.data
        spurious = getattr(data, "spurious", None)
        if spurious is None:
            return None
        return cue_truth(self.clip, self.clt, spurious, size=data.parameters["size"])


def _drawn(n: int, most: int, seed: int) -> Tensor:
    """Ascending indices of at most so many of n images, drawn."""
    return torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(n)[:most]))


def _auc(score: Tensor, truth: Tensor, on: Tensor) -> float | None:
    """How well a score finds the features that carry the cue, among those that are on."""
    carries = on & (truth >= CARRIES)
    others = on & ~carries
    if not bool(carries.any()) or not bool(others.any()):
        return None
    return float(auroc(score[carries][:, None], score[others][:, None]))
