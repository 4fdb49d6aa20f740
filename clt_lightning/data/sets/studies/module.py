"""`Studies`: several sets, by name, in one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from clt_lightning.core.classes import make_from, subclasses
from clt_lightning.core.errors import UserError, about
from clt_lightning.data.feed.place import find_place
from clt_lightning.data.feed.splits import Split
from clt_lightning.data.sets.base import SPLITS, WebImages
from clt_lightning.data.sets.studies.loader import StudiesEvalLoader, StudiesTrainLoader, Study

_KEY = "data.init_args"


class Studies(WebImages):
    """Several data sets at once. Every training batch holds images of each; `study` says which of them.

    Class lists are put together by name: a class that two sets share has one label. A batch has `image`, `key`, `study`
    `(B,)` int64 and, where a set has labels, `label`; -1 for images of a set without.

    Args:
        sets: The sets by name, each `{class_path: ..., init_args: {...}}`. Sets of other packages: import them first.
        weights: Share of each set in a batch by name, rescaled to sum 1; null: all alike.
        batch_size: Training images per step on each rank, of all sets together.
        eval_batch_size: Images a batch in validation, test and prediction, of one set; null: as `batch_size`.
        seed: Seed of the order in sets that name none; null: that of `seed_everything`.
        samples_per_epoch: Length of a training epoch over all ranks; null: that of all sets together. A set that is
            small for its share is read again, reshuffled.
        val_samples: Validate on this many samples of each set; null: all.
        num_workers: Worker processes of each set that names no number, on each rank.
        allow_pipe: Whether addresses that run a shell command on this machine are allowed, in any of the sets.

    Attributes:
        sets: the data modules by name.
        names: the sets' names; `study` numbers them.
    """

    set_name = "studies"

    def __init__(
        self,
        sets: dict[str, Any],
        weights: dict[str, float] | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        seed: int | None = None,
        samples_per_epoch: int | None = None,
        val_samples: int | None = None,
        num_workers: int = 1,
        allow_pipe: bool = False,
    ) -> None:
        super().__init__(
            root="studies",
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            samples_per_epoch=samples_per_epoch,
            val_samples=val_samples,
            num_workers=num_workers,
            allow_pipe=allow_pipe,
        )
        self.root = None
        if not isinstance(sets, Mapping) or len(sets) < 2:
            raise UserError(f"{_KEY}.sets must be two sets or more by name, each with class_path and init_args")
        bad = [str(name) for name in sets if not str(name).replace("_", "").replace("-", "").isalnum()]
        if bad:
            raise UserError(f"{_KEY}.sets: {bad[0]!r} is no name: take letters, digits, - and _")
        self.sets = {str(name): self._made(str(name), given) for name, given in sets.items()}
        self.names = list(self.sets)
        self.counts = _shares(weights, self.names, batch_size)

    def _made(self, name: str, given: Any) -> WebImages:
        if isinstance(given, WebImages):
            made = given
        else:
            own = {c.__name__: c for found in subclasses(WebImages).values() for c in found}
            with about(f"{_KEY}.sets.{name}"):
                if isinstance(given, Mapping):
                    common = {"seed": self.seed, "num_workers": self.num_workers}
                    given = {**given, "init_args": {**common, **(given.get("init_args") or {})}}
                made = make_from(given, WebImages, own, "data set", trusted=False)
        if isinstance(made, Studies):
            raise UserError(f"{_KEY}.sets.{name} is several sets itself: name them one by one")
        made.allow_pipe = self.allow_pipe
        return made

    # -- what there is --------------------------------------------------------------------------------------------
    @contextmanager
    def _about(self, name: str) -> Iterator[WebImages]:
        with about(f"{_KEY}.sets.{name}"):
            yield self.sets[name]

    def check_root(self) -> None:
        """As in `WebImages`, of every set."""
        for name in self.names:
            with self._about(name) as one:
                one.check_root()

    def require_root(self) -> None:
        """As in `WebImages`, of every set."""
        for name in self.names:
            with self._about(name) as one:
                one.require_root()

    def prepare_data(self) -> None:
        """As of every set."""
        for name in self.names:
            with self._about(name) as one:
                one.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """As in `WebImages`, of every set."""
        for name in self.names:
            with self._about(name) as one:
                one.setup(stage)
        self._read_names()

    def split(self, name: str) -> Split | None:
        """The first set's split, where every set has it; None where one has none."""
        if name not in SPLITS:
            raise UserError(f"there is no split {name!r}: use one of {', '.join(SPLITS)}")
        found = [one.split(name) for one in self.sets.values()]
        return None if any(split is None for split in found) else found[0]

    def describe(self) -> dict[str, Any]:
        """What a run's record says of its data, of all sets and of each."""
        self._read_names()
        return {
            "set": self.set_name,
            "root": None,
            "dataset_type": self.dataset_type,
            "n_classes": self.n_classes,
            "templates": self.templates,
            "seed": self.seed,
            "images_a_batch": dict(self.counts),
            "studies": {name: one.describe() for name, one in self.sets.items()},
        }

    def _read_names(self) -> None:
        if self._names_read:
            return
        for one in self.sets.values():
            one._read_names()
        lists = [one.classnames for one in self.sets.values() if one.classnames is not None]
        self.classnames = list(dict.fromkeys(name for names in lists for name in names)) or None
        self.templates = next((one.templates for one in self.sets.values() if one.templates), None)
        self._names_read = True

    def study(self, name: str) -> Study:
        """How a set's batches become part of those of all."""
        self._read_names()
        own, every = self.sets[name].classnames, self.classnames
        labels = None
        if own is not None and every is not None:
            number = {entry: i for i, entry in enumerate(every)}
            labels = torch.tensor([number[entry] for entry in own])
        return Study(self.names.index(name), labels, every is not None)

    # -- loaders --------------------------------------------------------------------------------------------------
    def train_dataloader(self) -> StudiesTrainLoader:  # type: ignore[override]
        """Shuffled, endless epochs; see `StudiesTrainLoader`."""
        rank, world = find_place(self.trainer, self.rank, self.world_size)
        total = self.samples_per_epoch or sum(self._samples(name) for name in self.names)
        batches = max(1, total // (self.batch_size * world))
        loaders = {}
        for name in self.names:
            with self._about(name):
                one = self._following(name)
                one.rank, one.world_size, one.batch_size = rank, world, self.counts[name]
                one.samples_per_epoch = batches * self.counts[name] * world
                loaders[name] = one.train_dataloader()
                loaders[name].follow(self.trainer) if self.trainer is not None else None
        return StudiesTrainLoader(loaders, {name: self.study(name) for name in self.names})

    def val_dataloader(self) -> StudiesEvalLoader | list[Any]:  # type: ignore[override]
        """`val` of every set (or its `test`); an empty list where a set has neither."""
        return [] if self.split("val") is None else self.eval_dataloader("val", limit=self.val_samples)

    def test_dataloader(self) -> StudiesEvalLoader:  # type: ignore[override]
        """`test` of every set (or its `val`)."""
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> StudiesEvalLoader:  # type: ignore[override]
        """The same as `test_dataloader`."""
        return self.eval_dataloader("test")

    def eval_dataloader(  # type: ignore[override]
        self, split: str, *, limit: int | None = None, batch_size: int | None = None
    ) -> StudiesEvalLoader:
        """A split of every set in order, every sample exactly once.

        Args:
            split: `train`, `val` or `test`.
            limit: only this many samples of each set, evenly spaced; None: all.
            batch_size: images per batch; None: `eval_batch_size`.
        """
        loaders = {}
        for name in self.names:
            with self._about(name):
                loaders[name] = self._following(name).eval_dataloader(
                    split, limit=limit, batch_size=batch_size or self.eval_batch_size
                )
        return StudiesEvalLoader(loaders, {name: self.study(name) for name in self.names})

    def _following(self, name: str) -> WebImages:
        """One set as its loaders are made: with the transform and the place of all."""
        one = copy.copy(self.sets[name])
        one.transform, one.trainer = self.transform, self.trainer
        one.rank, one.world_size = self.rank, self.world_size
        return one

    def _samples(self, name: str) -> int:
        split = self.sets[name].split("train")
        if split is None or split.samples is None:
            what = "has no training split" if split is None else "comes without counts"
            raise UserError(
                f"{_KEY}.sets.{name} {what}: set {_KEY}.samples_per_epoch" + ("" if split else " or a train")
            )
        return split.samples


def _shares(weights: dict[str, float] | None, names: list[str], batch_size: int) -> dict[str, int]:
    """Images of each set in a batch: the weights' shares, rounded so that they sum to it, one of each at least."""
    weights = dict.fromkeys(names, 1.0) if weights is None else weights
    if set(weights) != set(names):
        raise UserError(f"{_KEY}.weights must name {', '.join(names)}, but names {', '.join(map(str, weights))}")
    bad = [n for n, w in weights.items() if isinstance(w, bool) or not isinstance(w, int | float) or not 0 < w < 1e9]
    if bad:
        raise UserError(f"{_KEY}.weights.{bad[0]} must be a number above 0, but is {weights[bad[0]]!r}")
    if batch_size < len(names):
        raise UserError(f"{_KEY}.batch_size must be {len(names)} or more, one image of each set, but is {batch_size}")
    exact = {name: batch_size * weights[name] / sum(weights.values()) for name in names}
    counts = {name: max(1, int(exact[name])) for name in names}
    while sum(counts.values()) > batch_size:
        counts[max(counts, key=lambda n: counts[n] - exact[n] if counts[n] > 1 else -1e9)] -= 1
    while sum(counts.values()) < batch_size:
        counts[max(counts, key=lambda n: exact[n] - counts[n])] += 1
    return counts
