"""The whole study: thresholds from training images, strengths chosen on validation images, arms measured on test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.analysis.amplify.arms import (
    STEERING,
    SUPERVISED,
    Choice,
    Displacements,
    Query,
    by_neighbours,
    candidates,
    check_arms,
)
from clt_lightning.analysis.amplify.gate import STATISTICS, GateBy
from clt_lightning.analysis.amplify.places import Amplifier, Seen
from clt_lightning.analysis.amplify.result import AmplifyArm, AmplifyResult, paired
from clt_lightning.analysis.amplify.training import Embed, Training, read_training
from clt_lightning.analysis.probes.fit import Probe, Rows, fit_classes
from clt_lightning.backbone import Backbone
from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.transcoder import CrossLayerTranscoder

Batches = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class AmplifyOptions:
    """What is amplified, and what is tried.

    Args:
        gammas: what codes are multiplied by.
        strengths: lambda: what the change is multiplied by; `strength * (gamma - 1)` alone acts.
        quantiles: of the gate: about this share of images like the training images is steered.
        gate_by: what the gate looks at, see `Gate`.
        layers: the backbone's blocks whose features are amplified; None: all where the transcoder stands.
        neighbours: training images that an image is compared with.
        arms: of `WORDS`; None: all that can be run.
        draws: bootstrap resamples of the test images.
        seed: of random directions and resamples.
    """

    gammas: Sequence[float] = (1.1, 1.25, 1.5, 2.0, 3.0)
    strengths: Sequence[float] = (1.0,)
    quantiles: Sequence[float] = (0.99,)
    gate_by: GateBy = "fvu"
    layers: Sequence[int] | None = None
    neighbours: int = 50
    arms: Sequence[str] | None = None
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "amplify")
        for name in ("gammas", "strengths", "quantiles"):
            values = getattr(self, name)
            if not values or not all(abs(value) < float("inf") for value in values):
                raise UserError(f"amplify: {name} needs finite numbers, got {list(values)}")
        if not all(0 < q <= 1 for q in self.quantiles):
            raise UserError(f"amplify: a quantile of the gate lies in (0, 1], got {list(self.quantiles)}")
        if self.neighbours < 1 or self.draws < 1:
            raise UserError(f"amplify: neighbours and draws must be at least 1, got {self.neighbours}, {self.draws}")
        check_arms(self.arms)


@torch.no_grad()
def amplify(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    splits: Mapping[str, Batches],
    head: Tensor,
    classnames: Sequence[str],
    options: AmplifyOptions | None = None,
    *,
    embed: Embed | None = None,
    index: str = "own embedding",
    ensemble: Tensor | None = None,
    outside: Mapping[str, Iterable[Tensor]] | None = None,
    totals: Mapping[str, int] | None = None,
) -> AmplifyResult:
    """Amplify codes of [CLS] (VS2, VS2++), beside the arms that would do as much without them.

    Thresholds, means and neighbours come from `train`, whose labels the arms of `SUPERVISED` alone read; every arm
    chooses among its candidates on `val`; `test` is measured once, with what was chosen.

    Args:
        clip: the backbone.
        clt: a transcoder or autoencoder.
        splits: batches of `train`, `val` and `test`: `image`, `label` and `key`.
        head: `(embed_dim, classes)`, what makes class logits of all arms but the ensemble.
        classnames: names of the classes.
        options: what is tried.
        embed: preprocessed images to the space in which neighbours are looked for, such as a second backbone's
            embedding; None: the backbone's own.
        index: what that space is called.
        ensemble: `(embed_dim, classes)` of many prompts.
        outside: by name batches of images from elsewhere, of which the gate should steer none.
        totals: images by split, for the progress.

    Raises:
        UserError: a split without images or labels, one class, arms that were asked for and cannot be run, and what
            `Amplifier` raises.
    """
    options = options or AmplifyOptions()
    if head.shape[1] != len(classnames):
        raise UserError(f"the head has {head.shape[1]} columns for {len(classnames)} class names")
    if len(classnames) < 2:
        raise UserError("amplifying is measured by the classes that images are taken for: one class says nothing")
    study = _Study(Amplifier(clip, clt, options.layers), head.to(clip.device), options, embed, ensemble)
    totals = totals or {}
    study.train(splits["train"], totals.get("train"))
    study.choose(splits["val"], totals.get("val"))
    return study.measure(splits["test"], totals.get("test"), list(classnames), index, outside or {})


class _Study:
    def __init__(
        self, amplifier: Amplifier, head: Tensor, options: AmplifyOptions, embed: Embed | None, ensemble: Tensor | None
    ) -> None:
        self.amplifier, self.head, self.options, self.embed = amplifier, head, options, embed
        self.ensemble = ensemble
        self.arms = check_arms(options.arms)
        self.left_out: dict[str, str] = {}
        self.n_classes = head.shape[1]
        starts = np.cumsum([0, *(len(place.targets) for place in amplifier.places)])
        self.slices = [slice(int(a), int(b)) for a, b in pairwise(starts)]
        self.images: dict[str, int] = {}
        self.fvu: dict[str, list[float]] = {}
        self.probe: Probe | None = None
        self.chosen: dict[str, Choice] = {}
        self.tried: dict[str, list[tuple[Choice, float]]] = {}

    # -- training images ---------------------------------------------------------------------------------------------

    def train(self, batches: Batches, total: int | None) -> None:
        self.training: Training = read_training(
            self.amplifier, batches, self.head, self.embed, total, self.options.gate_by
        )
        self.images["train"] = len(self.training)
        self.fvu["train"] = self.training.fvu.median(1).values.tolist()
        self.displacements = Displacements(self.training, self.slices, self.options.seed)
        if "vs2_gated" in self.arms:
            for quantile in self.options.quantiles:
                self.displacements.limits(quantile)  # too few images are told before the next pass
        labels = self.training.labels
        self._check_classes("train", labels)
        known = labels[labels >= 0].unique()
        if len(known) < 2:
            why = "the training images have no labels" if not len(known) else "the training images are of one class"
            for arm in SUPERVISED:
                self._leave_out(arm, why)
        if self.ensemble is None:
            self._leave_out("ensemble", "there are no other prompts for this backbone and these classes")

    def _leave_out(self, arm: str, why: str) -> None:
        if arm not in self.arms:
            return
        if self.options.arms is not None and arm in self.options.arms:
            raise UserError(f"the arm {arm} cannot be run: {why}")
        self.arms.remove(arm)
        self.left_out[arm] = why

    def _check_classes(self, split: str, labels: Tensor) -> None:
        if labels.numel() and int(labels.max()) >= self.n_classes:
            raise UserError(f"split {split!r}: label {int(labels.max())} is beyond the {self.n_classes} classes")

    # -- validation images -------------------------------------------------------------------------------------------

    def choose(self, batches: Batches, total: int | None) -> None:
        plan = {arm: self._candidates(arm) for arm in self.arms}
        right = {arm: [0] * len(choices) for arm, choices in plan.items()}
        embeddings, labels, fvu = [], [], []
        for query in self._queries("val", batches, total):
            fvu.append(self._fvu(query.observed.seen))
            embeddings.append(query.observed.embeddings.cpu())
            labels.append(query.labels)
            for arm, choices in plan.items():
                for number, choice in enumerate(choices):
                    if arm != "probe":
                        right[arm][number] += int((self._predict(arm, choice, query) == query.labels).sum())
        known = torch.cat(labels)
        n = self.images["val"] = len(known)
        if len(known.unique()) < 2:
            raise UserError("split 'val': all labelled images are of one class, on which nothing can be chosen")
        self.fvu["val"] = torch.cat(fvu, 1).median(1).values.tolist()
        if "probe" in self.arms:
            rows = self.training.labels >= 0
            train = Rows(self.training.embeddings[rows].float(), self.training.labels[rows])
            val = Rows(torch.cat(embeddings).float(), known)
            self.probe = fit_classes(train, val, self.n_classes, intercept=False)
            right["probe"] = [int((self.probe.classes(val.x) == known).sum())]
        for arm, choices in plan.items():
            self.tried[arm] = [(choice, count / n) for choice, count in zip(choices, right[arm])]
            self.chosen[arm] = max(self.tried[arm], key=lambda entry: entry[1])[0]  # of equal ones the first

    def _candidates(self, arm: str) -> list[Choice]:
        o = self.options
        return candidates(arm, o.gammas, o.strengths, o.quantiles, min(o.neighbours, len(self.training)))

    # -- test images -------------------------------------------------------------------------------------------------

    def measure(
        self,
        batches: Batches,
        total: int | None,
        classnames: list[str],
        index: str,
        outside: Mapping[str, Iterable[Tensor]],
    ) -> AmplifyResult:
        predicted: dict[str, list[Tensor]] = {arm: [] for arm in self.arms}
        steered: dict[str, list[Tensor]] = {arm: [] for arm in self.arms}
        open_layers: list[Tensor] = []
        keys: list[str] = []
        labels, fvu = [], []
        for query in self._queries("test", batches, total):
            keys += query.keys
            labels.append(query.labels)
            fvu.append(self._fvu(query.observed.seen))
            for arm in self.arms:
                predicted[arm].append(self._predict(arm, self.chosen[arm], query))
                steered[arm].append(self._steered(arm, query))
            if "vs2_gated" in self.arms:
                open_layers.append(self._open(query))
        known = torch.cat(labels)
        self.images["test"] = len(known)
        self.fvu["test"] = torch.cat(fvu, 1).median(1).values.tolist()
        whole = {arm: torch.cat(parts).numpy() for arm, parts in predicted.items()}
        moved = {arm: torch.cat(parts).numpy() for arm, parts in steered.items()}
        layers = torch.cat(open_layers, 1).float().mean(1).tolist() if open_layers else None
        quantiles = self.options.quantiles if "vs2_gated" in self.arms else ()
        amplifier = self.amplifier
        return AmplifyResult(
            arms=self._arms(whole, moved, known.numpy(), layers),
            left_out=self.left_out,
            images=self.images,
            layers=[amplifier.blocks[row] for row in amplifier.sources],
            places=[(place.site, place.block) for place in amplifier.places],
            targets=list(amplifier.targets),
            gate_by=self.options.gate_by,
            limits={q: self._limits_of(q) for q in quantiles},
            fvu=self.fvu,
            outside={name: self._outside(images) for name, images in outside.items()} if quantiles else {},
            neighbours=min(self.options.neighbours, len(self.training)),
            index=index,
            keys=keys,
            labels=known.numpy(),
            predicted=whole,
            classnames=classnames,
            seed=self.options.seed,
        )

    def _arms(
        self,
        predicted: dict[str, np.ndarray],
        moved: dict[str, np.ndarray],
        labels: np.ndarray,
        layers: list[float] | None,
    ) -> list[AmplifyArm]:
        right = np.stack([predicted[arm] == labels for arm in self.arms], 1)
        base = right[:, 0]
        accuracies, differences = paired(right, base, self.options.draws, self.options.seed)
        rows = []
        for column, arm in enumerate(self.arms):
            own, some = right[:, column], moved[arm]
            steers = arm in STEERING
            partly = steers and 0 < some.sum() < len(some)
            rows.append(
                AmplifyArm(
                    name=arm,
                    choice=self.chosen[arm],
                    tried=self.tried[arm],
                    accuracy=accuracies[column],
                    difference=differences[column],
                    steered=float(some.mean()) if steers else None,
                    steered_layers=layers if arm == "vs2_gated" else None,
                    won=int((own & ~base).sum()),
                    lost=int((~own & base).sum()),
                    changed=int((predicted[arm] != predicted["none"]).sum()),
                    steered_accuracy=float(own[some].mean()) if partly else None,
                    steered_difference=float(own[some].mean() - base[some].mean()) if partly else None,
                )
            )
        return rows

    def _limits_of(self, quantile: float) -> dict[str, list[list[float | None]]]:
        ends = self.displacements.limits(quantile).tolist()
        plain = [[[v if abs(v) < float("inf") else None for v in pair] for pair in rows] for rows in ends]
        return dict(zip(STATISTICS[self.options.gate_by], plain))

    def _outside(self, batches: Iterable[Tensor]) -> dict[str, float]:
        quantile = self.chosen["vs2_gated"].quantile
        assert quantile is not None
        count, steered = 0, 0
        for images in batches:
            seen = self.amplifier.observe(images.to(self.amplifier.clip.device)).seen
            lets = torch.cat([self.displacements.gate(s, place, quantile) for place, s in enumerate(seen)])
            count, steered = count + len(images), steered + int(lets.any(0).sum())
        if not count:
            raise UserError("there are no images to look at from outside the domain")
        return {"images": count, "steered": steered / count}

    # -- one batch ---------------------------------------------------------------------------------------------------

    def _queries(self, split: str, batches: Batches, total: int | None) -> Iterator[Query]:
        clip = self.amplifier.clip
        n, known = 0, 0
        with Progress(f"arms on {split} images", total, "images") as progress:
            for batch in batches:
                n += len(batch["image"])
                if "multi_hot" in batch:
                    raise UserError("images of several categories: amplifying is measured by one label an image")
                labels = batch.get("label")
                chosen = None if labels is None else torch.as_tensor(labels).cpu() >= 0
                if chosen is not None and bool(chosen.any()):
                    labels = torch.as_tensor(labels).cpu().long()[chosen]
                    self._check_classes(split, labels)
                    known += len(labels)
                    images = batch["image"][chosen].to(clip.device)
                    names = [key for key, keep in zip(batch["key"], chosen.tolist()) if keep]
                    yield self._query(images, names, labels)
                progress.update(len(batch["image"]))
        if not n:
            raise UserError(f"split {split!r} has no images")
        if not known:
            raise UserError(
                f"split {split!r} has no labels: amplifying is measured by accuracy (docs/data.md says how tars name "
                "classes)"
            )

    def _query(self, images: Tensor, keys: list[str], labels: Tensor) -> Query:
        observed = self.amplifier.observe(images)
        own = observed.embeddings
        space = own if self.embed is None else F.normalize(self.embed(images).float(), dim=-1)
        k = max(self.options.neighbours, 1)
        neighbours, cosines = self.training.nearest(space.cpu(), k)
        return Query(observed, keys, labels, self._classes(own), neighbours, cosines)

    def _classes(self, embeddings: Tensor, head: Tensor | None = None) -> Tensor:
        chosen = self.head if head is None else head
        return self.amplifier.clip.logits(embeddings.to(chosen.device), chosen).argmax(1).cpu()

    def _predict(self, arm: str, choice: Choice, query: Query) -> Tensor:
        """`(images,)` the class that an arm names."""
        if arm in STEERING:

            def displace(place: int, seen: Seen) -> Tensor:
                return self.displacements(arm, choice, query, place, seen)

            return self._classes(self.amplifier.embed(query.observed, displace))
        if arm == "probe":
            assert self.probe is not None
            return self.probe.classes(query.observed.embeddings.float().cpu())
        if arm == "ensemble":
            assert self.ensemble is not None
            return self._classes(query.observed.embeddings, self.ensemble.to(self.head.device))
        if arm == "none":
            return query.pseudo_labels
        found = by_neighbours(arm, choice, query, self.training, self.n_classes)
        return self._classes(found) if arm == "rag" else found.argmax(1)

    def _steered(self, arm: str, query: Query) -> Tensor:
        """`(images,)` bool: which images an arm has moved."""
        everyone = torch.ones(len(query.keys), dtype=torch.bool)
        if arm == "vs2_gated":
            return self._open(query).any(0)
        if arm.startswith("vs2pp"):
            return self.displacements.same(arm, query).any(1)
        return everyone if arm in STEERING else ~everyone

    def _open(self, query: Query) -> Tensor:
        """`(targets, images)` bool: what the chosen gate let through when the arm was run last."""
        quantile = self.chosen["vs2_gated"].quantile
        assert quantile is not None
        return torch.cat([query.open[quantile, place] for place in range(len(self.slices))]).cpu()

    def _fvu(self, seen: list[Seen]) -> Tensor:
        """`(targets, images)` in the untouched model."""
        means = self.training.y_means
        return torch.cat([s.fvu(means[rows].to(s.x)) for s, rows in zip(seen, self.slices)]).cpu()
