"""Everything that `test` measures on a split, in one pass over it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis import statistics
from clt_lightning.analysis.arm_table import Arms
from clt_lightning.analysis.arms import OF_SKIP, Arm, ArmRunner, CascadeOptions, plan_arms
from clt_lightning.analysis.attention_units import AttentionMeans, AttentionUnits
from clt_lightning.analysis.effects import EffectCheck, check_effects
from clt_lightning.analysis.faithfulness import Faithfulness, FaithfulnessOptions
from clt_lightning.analysis.features import FeatureOptions, Features
from clt_lightning.analysis.measures import (
    BySource,
    FeatureEffects,
    FeatureTables,
    LogitParts,
    Sampled,
    SparseCodes,
    TermsTakenAway,
)
from clt_lightning.analysis.neighbours import find_neighbours
from clt_lightning.analysis.population import PopulationOptions
from clt_lightning.analysis.reconstruction import ReconstructionErrors
from clt_lightning.analysis.reference import HeldOutImages, Reference, TrainingImages, training_means
from clt_lightning.analysis.results import Evaluation
from clt_lightning.analysis.retrieval import Retrieval
from clt_lightning.analysis.shares import measurable
from clt_lightning.analysis.statistics import Measured
from clt_lightning.analysis.suite import Analysis, Subject, Suite
from clt_lightning.analysis.tower import at_all_mlps
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import track
from clt_lightning.metrics import TOKEN_SETS, check_token_sets, present
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention

log = logging.getLogger(__name__)


@dataclass
class EffectOptions:
    """What is measured of the features' effects on the logits.

    Args:
        enabled: measure them at all; they need class names.
        check_images: images on which features are really ablated.
        check_features: how many features: the strongest, and as many drawn from the others.
        check_pairs: at most so many pairs of a feature and an image.
        integrated_pairs: at most so many of these with integrated gradients, which cost four times as much.
    """

    enabled: bool = True
    check_images: int = 64
    check_features: int = 200
    check_pairs: int = 2048
    integrated_pairs: int = 512

    def __post_init__(self) -> None:
        for name in ("check_images", "check_features", "check_pairs", "integrated_pairs"):
            if getattr(self, name) < 0:
                raise UserError(f"evaluate.effects.{name} must be 0 or more, got {getattr(self, name)}")


@dataclass
class EvaluateOptions:
    """What an evaluation measures.

    Args:
        token_sets: token sets of the reconstruction: cls, register, patch, all; all four take those that there are.
        cascade: which windows of MLPs are replaced.
        faithfulness: which terms are taken away, where.
        population: the pass over training images.
        features: what is collected of every feature.
        effects: what every feature does to the logits, and the check by ablation.
        retrieval: entries kept of each image's sparse code in a layer, for its neighbours; 0 keeps none.
        bootstrap: resamples behind the intervals.
        seed: seed of resamples and random orders.
    """

    token_sets: list[str] = field(default_factory=lambda: list(TOKEN_SETS))
    cascade: CascadeOptions = field(default_factory=CascadeOptions)
    faithfulness: FaithfulnessOptions = field(default_factory=FaithfulnessOptions)
    population: PopulationOptions = field(default_factory=PopulationOptions)
    features: FeatureOptions = field(default_factory=FeatureOptions)
    effects: EffectOptions = field(default_factory=EffectOptions)
    retrieval: int = 64
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "evaluate")
        check_token_sets(self.token_sets, option="evaluate.token_sets")
        if self.retrieval < 0 or self.bootstrap < 1:
            raise UserError(
                f"evaluate.retrieval must be >= 0 and evaluate.bootstrap >= 1, got {self.retrieval}, {self.bootstrap}"
            )


class Evaluator:
    """Measures a transcoder on a split, batch by batch; the numbers are the same for any batching and process count.

    Use: `reference(batch)` for some training images (if wanted), `start()`, `take(batch)` for every batch of the split,
    then `result()`. All processes must call everything; only process 0 gets the results.

    Args:
        clip: the backbone.
        clt: the transcoder, on the same device.
        classnames: class names; None or empty: no zero-shot classification.
        templates: prompt templates.
        options: what to measure.
        extra: analyses of one's own, run on the same forwards.
        arms: arms that are run beside those of `options.cascade`.
        split: the split's name.
        attention: sparse attention, measured beside the transcoder.

    Attributes:
        suite: what runs over the split; after `start()`.
    """

    suite: Suite

    def __init__(
        self,
        clip: FrozenCLIP,
        clt: CrossLayerTranscoder,
        classnames: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        options: EvaluateOptions | None = None,
        extra: Sequence[Analysis] = (),
        arms: Sequence[Arm] = (),
        split: str = "test",
        attention: AnyAttention | None = None,
    ) -> None:
        self.clip, self.clt, self.split, self.extra = clip, clt, split, list(extra)
        self.options = options or EvaluateOptions()
        named = clip.names_classes(classnames, templates)
        names = list(classnames or []) if named else []
        head = clip.head_for(names, list(templates or [])) if named else None
        self.subject = Subject(clip, clt, head, names, self.options.bootstrap, self.options.seed, attention)
        self._at_mlps = at_all_mlps(clip, clt)
        if not self._at_mlps:
            log.info("no faithfulness, shares and effects of logits: they take a transcoder of all MLPs for granted")
        blocks = None if attention is None else clip.n_layers
        planned = plan_arms(self.options.cascade, clt.n_layers, clt.skip, self.subject.tokens, blocks)
        on_all = [arm for arm in planned if not arm.sampled]
        asked = [arm for arm in dict.fromkeys(arms) if arm not in on_all]
        self.arms = [*(arm for arm in planned if arm not in asked), *asked]
        self._token_sets = present(self.options.token_sets, self.subject.tokens, "evaluate.token_sets")
        wanted = self.options.faithfulness
        self._layers = list(wanted.layers or [clip.n_layers - 1]) if wanted.enabled and named and self._at_mlps else []
        clip.check_layers(self._layers or None)
        self._population_arm = next((arm for arm in self.arms if arm.kind == "replaced" and arm.tokens == "all"), None)
        self._reference: Reference | None = None
        self._training = TrainingImages(self.subject, self._population_arm)
        self._means = None if attention is None else AttentionMeans()
        self._reading = Suite(self.subject, [self._training] if self._means is None else [self._training, self._means])

    def reference(self, data: Mapping[str, Any]) -> None:
        """Take in a batch of training images; before `start`."""
        self._reading.take(data)

    def start(self) -> None:
        """Close the training pass and prepare for the split."""
        self._started = time.perf_counter()
        self._reference = self._training.result()
        if self._reference is None:
            log.info("no training images: no population check, no mean ablation or dataset ranking of terms")
        self.suite = Suite(self.subject, self._analyses(), self.extra)

    def _analyses(self) -> Iterator[Analysis]:
        options, head = self.options, self.subject.head
        yield ReconstructionErrors(self._token_sets)
        if self.subject.attention is not None:
            yield AttentionUnits(spans=True)
        if self._at_mlps and measurable(self.clip, head):
            yield LogitParts()
        yield BySource()
        yield TermsTakenAway(self._faithfulness())
        if options.features.enabled:
            yield FeatureTables(options.features, self.split)
        if options.effects.enabled and options.features.enabled and len(self.subject.classnames) > 1 and self._at_mlps:
            yield FeatureEffects(options.effects.check_images)
        if options.retrieval:
            yield SparseCodes(options.retrieval)
        if self._reference is not None:
            yield HeldOutImages()
        yield self._run_arms()

    def _run_arms(self) -> Arms:
        known, device = self._reference, self.clip.device
        means = training_means(self.clt, self.subject.tokens, known)
        if means is None and any(arm.kind == "mean_ablated" for arm in self.arms):
            log.info("mean ablation is not measured: the training data's means are not known")
            self.arms = [arm for arm in self.arms if arm.kind != "mean_ablated"]
        parts: dict[str, Tensor] = {}
        of_attention = None if self._means is None else self._means.result()
        if of_attention is None:
            self.arms = [arm for arm in self.arms if arm.kind != "attention_mean"]
        else:
            parts["attention_means"] = of_attention.to(device)
        if known is None:
            self.arms = [arm for arm in self.arms if arm.kind not in OF_SKIP]
        elif self.clt.skip:
            parts |= {"feature_means": known.feature_means.to(device), "skip_means": known.skip_means.to(device)}
        means = None if means is None else means.to(device)
        runner = ArmRunner(self.clip, self.clt, means, attention=self.subject.attention, **parts)
        return Arms(runner, self.arms, self.options.cascade.control_share)

    def _faithfulness(self) -> list[Faithfulness]:
        options, known = self.options.faithfulness, self._reference
        metrics = []
        for layer in self._layers:
            for tokens in present(options.token_sets, self.subject.tokens, "faithfulness.token_sets", ("cls", "all")):
                scores = None
                if "dataset" in options.rankings and known is not None:
                    scores = known.scores[tokens].uncentred[: layer + 1, layer]
                by_image = "image" in options.rankings
                if not by_image and scores is None:
                    continue
                for ablation in options.ablations:
                    if ablation == "mean" and known is None:
                        continue
                    means = known.term_means(layer) if ablation == "mean" and known is not None else None
                    metrics.append(
                        Faithfulness(
                            self.clip,
                            self.clt,
                            layer,
                            tokens,
                            options.draws,
                            scores,
                            means,
                            by_image,
                            self.options.seed,
                        )
                    )
        return metrics

    def take(self, data: Mapping[str, Any]) -> None:
        """Take in a batch of the split: `image`, and where they are there `label`, `key`, `multi_hot`, `captions`."""
        self.suite.take(data)

    def result(self) -> tuple[Evaluation, Features | None, Retrieval | None] | None:
        """All numbers of the split on process 0, None on the others; every process must call this."""
        found, extra = self.suite.results(), self.suite.extra_results()
        measured: Measured = found["arms"]
        if not len(measured.keys):  # on every process: none may wait for another
            raise UserError(f"split {self.split!r} has no images: nothing to evaluate")
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return None
        sampled: Sampled | None = found.get("effects")
        features: Features | None = found.get("features")
        retrieval: Retrieval | None = found.get("codes")
        if features is not None:
            alive = features.stats["frequency"] > 0
            near = find_neighbours(self.clip, self.clt, alive, retrieval)
            effects = None if sampled is None else sampled.effects
            features = dataclasses.replace(features, neighbours=near, effects=effects)
        fvu = found["reconstruction"]["fvu"]
        labels = measured.columns["labels"]
        draws, seed = self.options.bootstrap, self.options.seed
        evaluation = Evaluation(
            split=self.split,
            images=len(measured.keys),
            labelled=int((labels >= 0).sum()),
            classnames=list(self.subject.classnames),
            reconstruction=found["reconstruction"],
            arms=statistics.zero_shot(measured, draws, seed),
            multilabel=statistics.multilabel(measured, draws, seed),
            retrieval=statistics.retrieval(measured, draws, seed),
            contributions=found["contributions"],
            faithfulness=found["faithfulness"],
            population=statistics.population(
                measured,
                self._reference,
                found.get("held_out", {}),
                self._population_arm,
                float(fvu["all"].mean()) if "all" in fvu else float("nan"),
                self.options.population.resamples,
                seed,
            ),
            effect_check=None if sampled is None else self._check(sampled),
            shares=found.get("logit"),
            train_images=0 if self._reference is None else self._reference.n_images,
            keys=measured.keys,
            labels=labels,
            rank=measured.column("rank"),
            kl=measured.column("kl"),
            predicted=measured.column("predicted"),
            skip=self.clt.skip,
            attention=found.get("attention"),
            extra=extra,
            info={
                "seconds": round(time.perf_counter() - self._started, 2),
                "options": dataclasses.asdict(self.options),
            },
        )
        return evaluation, features, retrieval

    def _check(self, sampled: Sampled) -> EffectCheck | None:
        wanted = self.options.effects
        if sampled.images is None or not wanted.check_features or not wanted.check_pairs:
            return None
        assert self.subject.head is not None
        return check_effects(
            self.clip,
            self.clt,
            self.subject.head,
            sampled.images,
            sampled.effects["margin_strength"],
            wanted.check_features,
            wanted.check_pairs,
            wanted.integrated_pairs,
            self.options.bootstrap,
            self.options.seed,
        )


def evaluate(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    batches: Iterable[dict[str, Any]],
    classnames: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    train_batches: Iterable[dict[str, Any]] | None = None,
    options: EvaluateOptions | None = None,
    split: str = "test",
    progress: bool = True,
    extra: Sequence[Analysis] = (),
    attention: AnyAttention | None = None,
) -> tuple[Evaluation, Features | None, Retrieval | None]:
    """Measure a transcoder on batches of images (`docs/design.md`: what a batch holds), in one process.

    Args:
        clip: the backbone.
        clt: the transcoder, on the same device.
        batches: the split.
        classnames: class names; None: no zero-shot classification.
        templates: prompt templates.
        train_batches: training images for the population check, term means and dataset rankings.
        options: what to measure.
        split: the split's name.
        progress: say on standard error how far it is.
        extra: analyses of one's own; their results are in `Evaluation.extra`.
        attention: sparse attention, measured beside the transcoder.

    Returns:
        the evaluation, the features and the images' sparse codes (None where not asked for).
    """
    evaluator = Evaluator(clip, clt, classnames, templates, options, extra, split=split, attention=attention)
    for batch in track(train_batches or (), "training images", unit="batches", show=progress):
        evaluator.reference(batch)
    evaluator.start()
    for batch in track(batches, split, unit="batches", show=progress):
        evaluator.take(batch)
    result = evaluator.result()
    assert result is not None, "evaluate() runs in one process; under DDP use an Evaluator on every process"
    return result
