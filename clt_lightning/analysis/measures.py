"""What `test` measures beside arms and reconstruction, as analyses of its suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from clt_lightning.analysis.contributions import Contributions, ContributionScores
from clt_lightning.analysis.effects import EffectCollector, Effects, ImageSample
from clt_lightning.analysis.faithfulness import Faithfulness, FaithfulnessResult
from clt_lightning.analysis.features import FeatureCollector, FeatureOptions, Features
from clt_lightning.analysis.intervals import Interval
from clt_lightning.analysis.retrieval import Retrieval, RetrievalCollector
from clt_lightning.analysis.shares import LogitShares
from clt_lightning.analysis.suite import Analysis, Batch, Subject
from clt_lightning.analysis.tower import Needs


class LogitParts(Analysis):
    """Who makes the logit of the predicted class and its margin (`shares.LogitShares`).

    Args:
        images: look at every n-th batch alone, so that it is about so many images; None: at all.
        batches: how many batches there are, in all processes.
    """

    name = "logit"
    needs = Needs(streams=frozenset([0]), attention=True)

    def __init__(self, images: int | None = None, batches: float = 0) -> None:
        self.images, self.batches = images, batches
        self._stride, self._seen = 0, 0

    def begin(self, subject: Subject) -> None:
        self._subject = subject
        self._shares = LogitShares(subject.clip, subject.clt, subject.head)

    def update(self, batch: Batch) -> None:
        if not self._stride:
            whole = int(self.batches) * batch.n_images
            self._stride = 1 if self.images is None else max(1, whole // self.images)
        if self._seen % self._stride == 0:
            self._shares.update(batch.keys, batch.seen, batch.y_hat)
        self._seen += 1

    def result(self) -> dict[str, dict[str, Interval]]:
        """By target and part."""
        return self._shares.result(self._subject.draws, self._subject.seed)


class BySource(Analysis):
    """Cross-layer contributions (`Contributions`)."""

    name = "contributions"

    def begin(self, subject: Subject) -> None:
        self._metric = Contributions(subject.clt, len(subject.classnames)).to(subject.device)

    def update(self, batch: Batch) -> None:
        self._metric.update(batch.codes, batch.layout, batch.labels, batch.seen.x)

    def result(self) -> dict[str, ContributionScores]:
        """By token set."""
        return self._metric.scores()


class TermsTakenAway(Analysis):
    """Faithfulness curves (`Faithfulness`).

    Args:
        metrics: one for each layer, token set and ablation.
    """

    name = "faithfulness"

    def __init__(self, metrics: Sequence[Faithfulness]) -> None:
        self.metrics = list(metrics)
        self.needs = Needs(before_mlp=frozenset(metric.layer for metric in metrics))

    def begin(self, subject: Subject) -> None:
        self._subject = subject
        self.metrics = [metric.to(subject.device) for metric in self.metrics]

    def update(self, batch: Batch) -> None:
        subject = self._subject
        for metric in self.metrics:
            assert subject.head is not None
            head = subject.head.to(subject.clip.device)
            metric.update(batch.seen, batch.codes, head, subject.clip.logit_scale, batch.labels)

    def result(self) -> list[FaithfulnessResult]:
        """One for each layer, token set, ranking and ablation."""
        draws, seed = self._subject.draws, self._subject.seed
        sums = [metric.compute() for metric in self.metrics]
        return [found for metric, own in zip(self.metrics, sums) for found in metric.results(own, draws, seed)]


@dataclass(frozen=True)
class Sampled:
    """Features' effects, and the images on which they are to be checked.

    Attributes:
        effects: of every feature.
        images: `(images, 3, size, size)` of all processes, sorted by key; None without any.
    """

    effects: Effects
    images: Tensor | None


class FeatureEffects(Analysis):
    """What every feature does to the logits (`EffectCollector`).

    Args:
        images: how many images are kept for the check by ablation.
    """

    name = "effects"
    needs = Needs(streams=frozenset([0, 1]), attention=True)

    def __init__(self, images: int) -> None:
        self._sample = ImageSample(images)

    def begin(self, subject: Subject) -> None:
        assert subject.head is not None
        self._metric = EffectCollector(subject.clip, subject.clt, subject.head).to(subject.device)

    def update(self, batch: Batch) -> None:
        self._metric.update(batch.seen, batch.codes)
        self._sample.add(batch.keys, batch.data["image"])

    def result(self) -> Sampled:
        return Sampled(self._metric.result(), self._sample.gathered())


class FeatureTables(Analysis):
    """What every feature responds to (`FeatureCollector`).

    Args:
        options: what is collected.
        split: the split's name.
    """

    name = "features"

    def __init__(self, options: FeatureOptions, split: str) -> None:
        self.options, self.split = options, split

    def begin(self, subject: Subject) -> None:
        self._subject = subject
        self._collector = FeatureCollector(subject.clip, subject.clt, subject.classnames, self.options)

    def update(self, batch: Batch) -> None:
        self._collector.update(batch.codes, batch.seen.embeddings, batch.keys, batch.labels)

    def result(self) -> Features | None:
        """On process 0; None on the others."""
        return self._collector.result(self.split, self._subject.head)


class SparseCodes(Analysis):
    """The sparse code of every image, to find its neighbours (`RetrievalCollector`).

    Args:
        entries: kept of a code in each layer.
    """

    name = "codes"

    def __init__(self, entries: int) -> None:
        self.entries = entries

    def begin(self, subject: Subject) -> None:
        self._collector = RetrievalCollector(subject.clt.n_features, self.entries)

    def update(self, batch: Batch) -> None:
        self._collector.update(batch.codes, batch.keys, batch.labels)

    def result(self) -> Retrieval:
        return self._collector.result()
