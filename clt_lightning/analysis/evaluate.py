"""Everything that is measured on a split, in one pass over it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis import statistics
from clt_lightning.analysis.arms import OF_SKIP, ArmRunner, CascadeOptions, plan_arms, sampled
from clt_lightning.analysis.contributions import Contributions
from clt_lightning.analysis.effects import EffectCollector, ImageSample, check_effects
from clt_lightning.analysis.faithfulness import Faithfulness, FaithfulnessOptions
from clt_lightning.analysis.features import FeatureCollector, FeatureOptions, Features
from clt_lightning.analysis.neighbours import find_neighbours
from clt_lightning.analysis.population import PopulationOptions
from clt_lightning.analysis.reconstruction import Reconstruction
from clt_lightning.analysis.reference import Reference, ReferenceCollector
from clt_lightning.analysis.results import Evaluation
from clt_lightning.analysis.retrieval import Retrieval, RetrievalCollector
from clt_lightning.analysis.shares import LogitShares, measurable
from clt_lightning.analysis.table import NOT_RUN, ImageTable, divergences, ranks_of
from clt_lightning.analysis.tower import Observation, at_all_mlps, observe
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import track
from clt_lightning.interventions.replacement import tokens_of
from clt_lightning.metrics import TOKEN_SETS, check_token_sets, metric_device, present
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

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
    then `result(split)`. All processes must call everything; only process 0 gets the results.

    Args:
        clip: the backbone.
        clt: the transcoder, on the same device.
        classnames: class names; None or empty: no zero-shot classification.
        templates: prompt templates.
        options: what to measure.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        clt: CrossLayerTranscoder,
        classnames: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        options: EvaluateOptions | None = None,
    ) -> None:
        self.clip, self.clt = clip, clt
        self.options = options or EvaluateOptions()
        named = clip.names_classes(classnames, templates)
        self.classnames = list(classnames or []) if named else []
        self.head = clip.head_for(self.classnames, list(templates or [])) if named else None
        self._at_mlps = at_all_mlps(clip, clt)
        if not self._at_mlps:
            log.info("no faithfulness, shares and effects of logits: they take a transcoder of all MLPs for granted")
        self.arms = plan_arms(self.options.cascade, clt.n_layers, clt.skip, tokens_of(clip, clt))
        self._tokens = tokens_of(clip, clt)
        self._token_sets = present(self.options.token_sets, self._tokens, "evaluate.token_sets")
        self._device = metric_device(clip.device)
        self._reference: Reference | None = None
        self._training = ReferenceCollector(clip, clt)
        self._runner = ArmRunner(clip, clt)
        self._started: float | None = None
        wanted = self.options.faithfulness
        self._layers = (
            []
            if not wanted.enabled or self.head is None or not self._at_mlps
            else list(wanted.layers or [clip.n_layers - 1])
        )
        clip.check_layers(self._layers or None)
        self._population_arm = next((arm for arm in self.arms if arm.kind == "replaced" and arm.tokens == "all"), None)

    # -- training images ---------------------------------------------------------------------------------------------
    @torch.no_grad()
    def reference(self, batch: dict[str, Any]) -> None:
        """Take in a batch of training images; before `start`."""
        if not len(batch["image"]):
            return
        seen, codes, y_hat = self._forward(batch["image"])
        outcomes: dict[str, Tensor] = {}
        if self.head is not None and self._population_arm is not None:
            labels = self._labels(batch)
            original = self._cosines(seen.embeddings)
            replaced = self._cosines(self._runner.embeddings(self._population_arm, seen, codes, y_hat))
            right = [(ranks_of(cosines, labels) == 0).double() for cosines in (original, replaced)]
            drop = (right[0] - right[1]).masked_fill(labels < 0, torch.nan)
            outcomes = {"kl": divergences(original, replaced, self.clip.logit_scale), "drop": drop}
        self._training.update(_keys(batch, len(self._training.table)), codes, seen, y_hat, outcomes)

    # -- the split ---------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Close the training pass and prepare for the split."""
        self._started = time.perf_counter()
        clt, options = self.clt, self.options
        if len(self._training.table):
            self._reference = self._training.result()
        else:
            log.info("no training images: no population check, no mean ablation or dataset ranking of terms")
        means = self._y_means()
        if means is None and any(arm.kind == "mean_ablated" for arm in self.arms):
            log.info("mean ablation is not measured: the training data's means are not known")
            self.arms = [arm for arm in self.arms if arm.kind != "mean_ablated"]
        parts: dict[str, Tensor] = {}
        if self._reference is None:
            self.arms = [arm for arm in self.arms if arm.kind not in OF_SKIP]
        elif clt.skip:
            parts["feature_means"] = self._reference.feature_means.to(self.clip.device)
            parts["skip_means"] = self._reference.skip_means.to(self.clip.device)
        self._runner = ArmRunner(self.clip, clt, means, **parts)
        self._shares = None
        if self._at_mlps and measurable(self.clip, self.head):
            self._shares = LogitShares(self.clip, clt, self.head)
        self._reconstruction = Reconstruction(clt, self._token_sets, self._device)
        self._contributions = Contributions(clt, len(self.classnames)).to(self._device)
        self._faithfulness = [metric.to(self._device) for metric in self._plan_faithfulness()]
        collects = options.features.enabled
        self._features = FeatureCollector(self.clip, clt, self.classnames, options.features) if collects else None
        self._retrieval = RetrievalCollector(clt.n_features, options.retrieval) if options.retrieval else None
        named = self.head is not None and len(self.classnames) > 1
        measures = options.effects.enabled and collects and named and self._at_mlps
        self._effects = None
        if measures:
            assert self.head is not None
            self._effects = EffectCollector(self.clip, clt, self.head).to(self._device)
        self._sample = ImageSample(options.effects.check_images if measures else 0)
        self._table, self._captions = ImageTable(), ImageTable()

    def _y_means(self) -> Tensor | None:
        if self._reference is not None:
            return self._reference.y_means.to(self.clip.device)
        return self.clt.y_mean[:, None].expand(-1, len(self._tokens.kinds), -1) if bool(self.clt.normalized) else None

    def _plan_faithfulness(self) -> list[Faithfulness]:
        options, known = self.options.faithfulness, self._reference
        metrics = []
        for layer in self._layers:
            for tokens in present(options.token_sets, self._tokens, "faithfulness.token_sets", ("cls", "all")):
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

    @torch.no_grad()
    def take(self, batch: dict[str, Any]) -> None:
        """Take in a batch of the split: `image`, and where they are there `label`, `key`, `multi_hot`, `captions`."""
        assert self._started is not None, "call start() first"
        if not len(batch["image"]):
            return  # a process that has run out of images
        labels, keys = self._labels(batch), _keys(batch, len(self._table))
        seen, codes, y_hat = self._forward(batch["image"])
        self._reconstruction.update(seen.y, y_hat, codes, self._tokens)
        if self._shares is not None:
            self._shares.update(keys, seen, y_hat)
        self._contributions.update(codes, self._tokens, labels, seen.x)
        for metric in self._faithfulness:
            assert self.head is not None
            metric.update(seen, codes, self.head.to(self.clip.device), self.clip.logit_scale, labels)
        if self._features is not None:
            self._features.update(codes, seen.embeddings, keys, labels)
        if self._effects is not None:
            self._effects.update(seen, codes)
            self._sample.add(keys, batch["image"])
        if self._retrieval is not None:
            self._retrieval.update(codes, keys, labels)
        columns: dict[str, Any] = {"labels": labels}
        if "multi_hot" in batch and self.head is not None:
            columns["multi_hot"] = batch["multi_hot"]
        columns |= self._run_arms(keys, seen, codes, y_hat, labels, "multi_hot" in columns, "captions" in batch)
        self._table.add(keys, columns)
        if "captions" in batch:
            names = [f"{key}\t{i:04d}" for key, texts in zip(keys, batch["captions"]) for i in range(len(texts))]
            if names:
                texts = [text for texts in batch["captions"] for text in texts]
                self._captions.add(names, {"embeddings": self.clip.encode_text(texts)})

    def _run_arms(
        self,
        keys: Sequence[str],
        seen: Observation,
        codes: Codes,
        y_hat: Tensor,
        labels: Tensor,
        keep_cosines: bool,
        keep_embeddings: bool,
    ) -> dict[str, np.ndarray]:
        if self.head is None and not keep_embeddings:
            return {}
        everyone = torch.ones(len(keys), dtype=torch.bool, device=seen.embeddings.device)
        some = sampled(keys, self.options.cascade.control_share).to(everyone.device)
        part = seen, codes, y_hat
        if any(arm.sampled for arm in self.arms):
            tokens = some.repeat_interleave(self.clip.n_positions)
            part = seen.select(some), codes.select_tokens(tokens), y_hat[:, tokens]
        original = None if self.head is None else self._cosines(seen.embeddings)
        found: dict[str, list[Tensor]] = {}
        for arm in self.arms:
            here = some if arm.sampled else everyone
            row: dict[str, Tensor] = {}
            embeddings = seen.embeddings[:0]
            if bool(here.any()):
                embeddings = self._runner.embeddings(arm, *(part if arm.sampled else (seen, codes, y_hat)))
            # recall and average precision depend on which images there are: of arms that are run on all
            if keep_embeddings and not arm.sampled:
                row["embeddings"] = embeddings.float()
            if original is not None:
                cosines = self._cosines(embeddings)
                row["rank"] = _placed(ranks_of(cosines, labels[here]), here, NOT_RUN)
                row["kl"] = _placed(divergences(original[here], cosines, self.clip.logit_scale), here, float("nan"))
                row["predicted"] = _placed(cosines.argmax(1), here, NOT_RUN)
                if keep_cosines and not arm.sampled:
                    row["cosines"] = cosines
            for name, value in row.items():
                found.setdefault(name, []).append(value)
        return {name: torch.stack([row.cpu() for row in rows], 1).numpy() for name, rows in found.items()}

    def result(self, split: str = "test") -> tuple[Evaluation, Features | None, Retrieval | None] | None:
        """All numbers of the split on process 0, None on the others; every process must call this.

        Args:
            split: its name.
        """
        assert self._started is not None, "call start() first"
        reconstruction = self._reconstruction.result()
        contributions = self._contributions.scores()
        sums = [metric.compute() for metric in self._faithfulness]
        faithfulness = [
            result
            for metric, values in zip(self._faithfulness, sums)
            for result in metric.results(values, self.options.bootstrap, self.options.seed)
        ]
        retrieval = None if self._retrieval is None else self._retrieval.result()
        effects = None if self._effects is None else self._effects.result()
        features = None if self._features is None else self._features.result(split, self.head, effects)
        sample = self._sample.gathered()
        shares = None if self._shares is None else self._shares.result(self.options.bootstrap, self.options.seed)
        keys, columns = self._table.gathered()
        captions = self._captions.gathered()
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return None
        if not len(keys):
            raise UserError(f"split {split!r} has no images: nothing to evaluate")
        if features is not None:
            alive = features.stats["frequency"] > 0
            features = dataclasses.replace(features, neighbours=find_neighbours(self.clip, self.clt, alive, retrieval))
        fvu = float(reconstruction["fvu"]["all"].mean()) if "all" in reconstruction["fvu"] else float("nan")
        measured = statistics.Measured(self.arms, self.classnames, keys, columns, captions)
        draws, seed = self.options.bootstrap, self.options.seed
        wanted = self.options.effects
        check = None
        if effects is not None and sample is not None and wanted.check_features and wanted.check_pairs:
            assert self.head is not None
            check = check_effects(
                self.clip,
                self.clt,
                self.head,
                sample,
                effects["margin_strength"],
                wanted.check_features,
                wanted.check_pairs,
                wanted.integrated_pairs,
                draws,
                seed,
            )
        labels = columns["labels"]
        evaluation = Evaluation(
            split=split,
            images=len(keys),
            labelled=int((labels >= 0).sum()),
            classnames=self.classnames,
            reconstruction=reconstruction,
            arms=statistics.zero_shot(measured, draws, seed),
            multilabel=statistics.multilabel(measured, draws, seed),
            retrieval=statistics.retrieval(measured, draws, seed),
            contributions=contributions,
            faithfulness=faithfulness,
            population=statistics.population(
                measured, self._reference, self._population_arm, fvu, self.options.population.resamples, seed
            ),
            effect_check=check,
            shares=shares,
            train_images=0 if self._reference is None else self._reference.n_images,
            keys=keys,
            labels=labels,
            rank=measured.column("rank"),
            kl=measured.column("kl"),
            predicted=measured.column("predicted"),
            info={
                "seconds": round(time.perf_counter() - self._started, 2),
                "options": dataclasses.asdict(self.options),
            },
        )
        return evaluation, features, retrieval

    # -- parts -------------------------------------------------------------------------------------------------------
    def _forward(self, images: Tensor) -> tuple[Observation, Codes, Tensor]:
        seen = observe(self.clip, images, self._layers, self.clt)
        out = self.clt(seen.x)
        return seen, out.codes, out.y_hat

    def _labels(self, batch: dict[str, Any]) -> Tensor:
        labels = batch.get("label")
        n, device = len(batch["image"]), self.clip.device
        if labels is None or not self.classnames:
            return torch.full((n,), -1, dtype=torch.int64, device=device)
        found: Tensor = labels.to(device)
        if found.numel() and int(found.max()) >= len(self.classnames):
            raise UserError(
                f"label {int(found.max())} is outside the {len(self.classnames)} class names: check classnames "
                "against the labels in the shards"
            )
        return found

    def _cosines(self, embeddings: Tensor) -> Tensor:
        assert self.head is not None
        with torch.autocast(embeddings.device.type, enabled=False):  # bf16 logits would tie
            return embeddings.float() @ self.head.float().to(embeddings.device)


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

    Returns:
        the evaluation, the features and the images' sparse codes (None where not asked for).
    """
    evaluator = Evaluator(clip, clt, classnames, templates, options)
    for batch in track(train_batches or (), "training images", unit="batches", show=progress):
        evaluator.reference(batch)
    evaluator.start()
    for batch in track(batches, split, unit="batches", show=progress):
        evaluator.take(batch)
    result = evaluator.result(split)
    assert result is not None, "evaluate() runs in one process; under DDP use an Evaluator on every process"
    return result


def _placed(values: Tensor, here: Tensor, nothing: float) -> Tensor:
    """Values of some images among all, on the CPU; the others get `nothing`."""
    whole = torch.full((len(here),), nothing, dtype=values.dtype)
    whole[here.cpu()] = values.cpu()
    return whole


def _keys(batch: dict[str, Any], seen: int) -> list[str]:
    keys = batch.get("key")
    if keys is not None:
        return list(keys)
    rank = 0
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank = torch.distributed.get_rank()
    return [f"{rank:04d}/{seen + i:08d}" for i in range(len(batch["image"]))]
