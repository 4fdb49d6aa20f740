"""Arms of one run's features: found in some way, edited in some way, beside random ones of equal activity."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.concepts import mean_codes
from clt_lightning.analysis.debias.choose import by_circuits, by_coactivation, by_codes, by_target, in_circuit, ordered
from clt_lightning.analysis.debias.controls import matched
from clt_lightning.analysis.debias.measure import arm, choose
from clt_lightning.analysis.debias.options import NEEDS_GROUPS
from clt_lightning.analysis.debias.predictor import Edit, Sample, embed
from clt_lightning.analysis.debias.regression import Regression, regressed_out
from clt_lightning.analysis.debias.relevance import Relevance, relevance_of
from clt_lightning.analysis.debias.result import ArmResult
from clt_lightning.analysis.debias.setting import Setting
from clt_lightning.analysis.debias.truth import CARRIES, auroc, cue_truth
from clt_lightning.analysis.debias.weights import attribute_weights, common_weights, lost_weights, picked
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
        self._embedded: dict[int, Tensor] = {}
        self.activity = self.anyone.activity.mean(0)

    def measure(self, nodes: Sequence[Feature] = ()) -> list[ArmResult]:
        """Every way with every edit.

        Args:
            nodes: features named by hand.
        """
        arms = []
        truth = self._truth()
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
            seen, sample, weights = (
                self._of_groups,
                of.balanced,
                attribute_weights(self._of_groups, of.groups, features),
            )
        else:
            assert of.unbiased_sample is not None
            seen, sample = self._of_unbiased, of.unbiased_sample
            known = of.unbiased_head is not None
            weights = lost_weights(self.anyone, seen, features) if known else common_weights(seen, features)
        fit = Regression.fit(
            features,
            weights,
            picked(self.anyone.activity, features).mean(0),
            picked(seen.activity, features),
            self._embeddings(sample),
            seen.labels,
        )
        return partial(regressed_out, self.clip, self.clt, fit)

    def _embeddings(self, sample: Sample) -> Tensor:
        """Of a sample, each once."""
        found = self._embedded.get(id(sample))
        if found is None:
            found = self._embedded[id(sample)] = embed(self.clip, sample.batches()).embeddings
        return found

    @cached_property
    def _of_groups(self) -> Relevance:
        return self._relevance(self.of.balanced)

    @cached_property
    def _of_unbiased(self) -> Relevance:
        sample = self.of.unbiased_sample
        assert sample is not None
        if self.of.unbiased_head is None:  # labels of other classes: only codes are looked at
            zeros = torch.zeros_like(sample.labels)
            sample = Sample(sample.images, zeros, zeros)
        return self._relevance(sample)

    def _relevance(self, sample: Sample) -> Relevance:
        return relevance_of(self.clip, self.clt, sample, self.of.head, self.means, progress=self.of.o.progress)

    def _scored(self, way: str) -> Tensor | None:
        of = self.of
        if way in NEEDS_GROUPS:
            return (by_circuits if way == "circuits" else by_codes)(self._of_groups, of.groups)
        if way != "coactivation":
            return None
        if of.unbiased_sample is None:
            of.note("coactivation is left out: it needs data in which the cue does not go with the class (--unbiased)")
            return None
        return (by_coactivation if of.unbiased_head is not None else by_target)(self.anyone, self._of_unbiased)

    def _truth(self) -> tuple[Tensor, Tensor] | None:
        data = self.of.data
        spurious = getattr(data, "spurious", None)
        if spurious is None:
            return None
        return cue_truth(self.clip, self.clt, spurious, size=data.parameters["size"])


def _auc(score: Tensor, truth: Tensor, on: Tensor) -> float | None:
    """How well a score finds the features that carry the cue, among those that are on."""
    carries = on & (truth >= CARRIES)
    others = on & ~carries
    if not bool(carries.any()) or not bool(others.any()):
        return None
    return float(auroc(score[carries][:, None], score[others][:, None]))
