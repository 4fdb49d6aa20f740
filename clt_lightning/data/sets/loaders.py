"""The loaders of a set's splits: every process its own samples, training endless, evaluation every sample once."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch

from clt_lightning.core.errors import UserError
from clt_lightning.data.feed.batches import Source
from clt_lightning.data.feed.decode import Augment, Decoder
from clt_lightning.data.feed.loader import EvalLoader, TrainLoader, Workers
from clt_lightning.data.feed.place import epoch_limit, find_place, repeats
from clt_lightning.data.feed.plan import BLOCK_SAMPLES, EvalPlan, TrainPlan
from clt_lightning.data.feed.seen import Transform
from clt_lightning.data.feed.splits import Selection, Split
from clt_lightning.data.sets.names import Names

log = logging.getLogger(__name__)


class Loaders(Names):
    """The part of a set that makes batches of its splits."""

    trainer: Any
    batch_size: int
    eval_batch_size: int
    num_workers: int
    shuffle: int
    seed: int
    samples_per_epoch: int | None
    val_samples: int | None
    on_error: Literal["raise", "skip"]
    allow_pipe: bool
    augment: Augment
    prefetch: int
    start_method: Literal["fork", "spawn", "forkserver"] | None
    max_pixels: int
    transform: Transform | None
    rank: int | None
    world_size: int | None

    @property
    def hint(self) -> str:
        """What makes this set's tars, for error messages."""
        raise NotImplementedError

    def split(self, name: str) -> Split | None:
        """The split `train`, `val` or `test` (or what stands in for it); None where there is none."""
        raise NotImplementedError

    def _selection(self) -> Selection | None:
        """For sets that select classes of another."""
        return None

    def train_dataloader(self) -> TrainLoader:
        """Shuffled, endless epochs; see `TrainLoader`."""
        split = self._needed("train")
        rank, world = find_place(self.trainer, self.rank, self.world_size)
        step = world * self.batch_size
        samples = self.samples_per_epoch or split.samples
        if samples is None:
            raise UserError(
                "the training tars are remote and come without counts: set data.init_args.samples_per_epoch, or put an "
                'index.json beside them ({"shards": [{"name": "0.tar", "samples": 2500}, …]})'
            )
        if samples < step:
            log.warning(
                "train: %d samples per epoch are fewer than one step (%d ranks x batch_size %d): the epoch is one "
                "step, and samples repeat in it",
                samples,
                world,
                self.batch_size,
            )
        plan = TrainPlan(
            counts=[s.samples for s in split.shards],
            batches=max(1, samples // step),
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=0 if self.trainer is None else self.trainer.current_epoch,
            rank=rank,
            world=world,
            workers=max(1, self.num_workers),
            block=BLOCK_SAMPLES if split.seekable else None,
        )
        return TrainLoader(
            self._source(split, self.augment),
            plan,
            shuffle=self.shuffle,
            workers=self._workers(),
            epoch_batches=epoch_limit(self.trainer, plan.batches),
            repeat=repeats(self.trainer),
        )

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """`val` (or `test` in its place), every sample once; an empty list where the set has neither."""
        return [] if self.split("val") is None else self.eval_dataloader("val", limit=self.val_samples)

    def test_dataloader(self) -> EvalLoader:
        """`test` (or `val` in its place), every sample once."""
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> EvalLoader:
        """The same as `test_dataloader`."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, split: str, *, limit: int | None = None, batch_size: int | None = None) -> EvalLoader:
        """Any split in order, every sample exactly once over all ranks, without augmentation.

        Args:
            split: `train`, `val` or `test`.
            limit: only this many samples, evenly spaced; None: all.
            batch_size: images per batch; None: `eval_batch_size`.

        Raises:
            UserError: no such split, no transform, or remote tars without counts.
        """
        found = self._needed(split)
        counts = [s.samples for s in found.shards if s.samples is not None]
        if len(counts) < len(found.shards):
            raise UserError(
                f"split {split!r} is remote and comes without counts, so it cannot be read exactly once: set "
                f"data.init_args.shard_counts={{{split}: [samples of each tar]}}, or put an index.json beside the tars"
            )
        rank, world = find_place(self.trainer, self.rank, self.world_size)
        plan = EvalPlan(counts, batch_size or self.eval_batch_size, rank, world, limit)
        return EvalLoader(self._source(found, "none"), plan, split=split, workers=self._workers())

    def _needed(self, name: str) -> Split:
        split = self.split(name)
        if split is None:
            raise self._no_split(name)
        return split

    def _no_split(self, name: str) -> UserError:
        where = f"{self.root!r} has" if self.root is not None else "the patterns give"
        more = f" {self.hint}" if self.hint else f" Make <root>/{name}/0.tar …, or set data.init_args.{name}."
        return UserError(f"{where} no split {name!r}.{more}")

    def _source(self, split: Split, augment: Augment) -> Source:
        if self.transform is None:
            raise UserError(
                "the data module's `transform` is not set: give it the model's preprocessing before building loaders "
                "(dm.transform = clip.preprocess)"
            )
        selection = self._selection()
        labels = None if selection is None else selection.labels
        decoder = Decoder(
            self.transform,
            split.fields,
            self.n_classes,
            None if self.groupnames is None else len(self.groupnames),
            labels,
            augment,
            self.seed,
            max_pixels=self.max_pixels,
        )
        return Source(split.shards, decoder, self.on_error, self.allow_pipe)

    def _workers(self) -> Workers:
        return Workers(self.num_workers, self.prefetch, torch.cuda.is_available(), self.start_method)
