"""The main process's side: the loaders hand out batches, count what was skipped, and know their exact place.

They are no `torch.utils.data.DataLoader`s but hold one, so that Lightning neither re-creates them nor injects samplers.
"""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from clt_lightning.core.errors import UserError
from clt_lightning.data.feed.batches import Batches, EvalBatches, Source, TrainBatches
from clt_lightning.data.feed.place import epoch_limit, repeats
from clt_lightning.data.feed.plan import EvalPlan, TrainPlan
from clt_lightning.data.feed.shared import SharedPackets

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workers:
    """How batches are made: worker processes (0: in the main process), batches ahead, pinned memory, start method."""

    number: int = 0
    prefetch: int = 2
    pin_memory: bool = False
    start_method: str | None = None

    def loader(self, batches: Batches) -> DataLoader[Any]:
        more: dict[str, Any] = {}
        if self.number:
            more = {"prefetch_factor": self.prefetch, "multiprocessing_context": self.start_method}
        return DataLoader(
            batches,
            batch_size=None,
            num_workers=self.number,
            collate_fn=_as_is,
            pin_memory=self.pin_memory,
            worker_init_fn=_calm,
            # an own generator: starting an epoch must not draw from the global one, or resuming would not be exact
            generator=torch.Generator().manual_seed(0),
            **more,
        )


def _as_is(packet: Any) -> Any:
    return packet


def _calm(_: int) -> None:
    """Signals meant for the main process (interrupt, SLURM's requeue) must not kill or confuse workers."""
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class _Loader:
    """What both loaders share: unpacking, counting what was skipped, and saying so at the end of each pass.

    Attributes:
        skipped: how many samples were left out in the current pass, by kind.
    """

    def __init__(self, split: str, workers: Workers) -> None:
        self.split = split
        self.workers = workers
        self.shared: SharedPackets | None = None  # of several loaders that read the same, side by side
        self.skipped: Counter[str] = Counter()
        self._first_names: list[str] = []
        self._reported = True

    def _packets(self, batches: Batches) -> Iterator[dict[str, Any]]:
        self.skipped, self._first_names, self._reported = Counter(), [], False
        try:
            for packet in self._read(batches):
                if "error" in packet:
                    raise UserError(packet["error"])
                for kind, where in packet["skipped"]:
                    self.skipped[kind] += 1
                    if len(self._first_names) < 5:
                        self._first_names.append(where)
                yield packet["batch"]
        finally:  # a pass that is broken off (`limit_val_batches`) says it as well
            self._report()

    def _read(self, batches: Batches) -> Iterable[Any]:
        if self.shared is None:
            return self.workers.loader(batches)
        return self.shared.of(batches, lambda: self.workers.loader(batches))

    def _report(self) -> None:
        """Says what was left out, once a pass."""
        if self.skipped and not self._reported:
            kinds = ", ".join(f"{n} x {kind}" for kind, n in self.skipped.most_common())
            log.warning(
                "%s: %d samples left out (%s); first: %s",
                self.split,
                sum(self.skipped.values()),
                kinds,
                ", ".join(self._first_names),
            )
        self._reported = True


class EvalLoader(_Loader):
    """Every sample of a split exactly once over all ranks, in order; see `EvalPlan` for the sizes of batches."""

    def __init__(self, source: Source, plan: EvalPlan, *, split: str = "val", workers: Workers | None = None) -> None:
        super().__init__(split, workers or Workers())
        self.source, self.plan = source, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(self._packets(EvalBatches(self.source, self.plan)), 1):
            if number == len(self):
                self._report()
            yield batch


class TrainLoader(_Loader):
    """Endless epochs of shuffled batches, the same number on every rank, with an exact position for checkpoints.

    Every `iter()` gives the next epoch; one that was not read from does not count. `state_dict()` holds counters that
    are the same on all ranks, and after `load_state_dict` the next `iter()` goes on with the very next batch.

    Args:
        source, plan: what is read, by whom. The plan's `epoch` is the first one.
        shuffle: raw samples in each worker's shuffle buffer.
        epoch_batches: batches after which the consumer ends its epochs, where that is before the end (Lightning's
            `limit_train_batches`): the position saved after them is the start of the next epoch.
        repeat: every epoch is the first one: the same `epoch_batches` batches, order and augmentation included, and
            no others (Lightning's `overfit_batches`). The length stays the whole epoch's, since Lightning takes its
            share of that.
    """

    def __init__(
        self,
        source: Source,
        plan: TrainPlan,
        *,
        shuffle: int = 1000,
        workers: Workers | None = None,
        epoch_batches: int | None = None,
        repeat: bool = False,
    ) -> None:
        super().__init__("train", workers or Workers())
        assert plan.workers == max(1, self.workers.number)
        self.source, self.plan, self.shuffle = source, plan, shuffle
        self.epoch_batches = min(epoch_batches or plan.batches, plan.batches)
        self.repeat = repeat
        self._epoch, self._batch = plan.epoch, 0  # the next batch to hand out
        self._resuming = True  # whether an `iter()` begins at that batch, or with an epoch of its own

    def __len__(self) -> int:
        return self.plan.batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self._resuming and self._batch > 0:
            self._epoch, self._batch = self._epoch + 1, 0
        epoch, first = self._epoch, self._batch
        self._resuming = True
        drawn = 0 if self.repeat else epoch
        source = replace(self.source, decoder=replace(self.source.decoder, epoch=drawn))
        batches = TrainBatches(source, replace(self.plan, epoch=drawn), self.shuffle, first)
        for number, batch in enumerate(self._packets(batches), first + 1):
            last = number == self.epoch_batches
            if last or number == len(self):
                self._report()
            # set before handing out: Lightning saves while it holds the batch, and never asks for the end of an epoch
            self._epoch, self._batch = (epoch + 1, 0) if number >= self.epoch_batches else (epoch, number)
            self._resuming = False
            yield batch
            if last and self.repeat:
                return

    def follow(self, trainer: Any) -> None:
        """Takes over how much of an epoch a trainer reads, and whether it reads the same batches again and again; for
        a loader that was made without the trainer (`trainer.fit(module, loader)`), before its first batch.
        """
        self.epoch_batches = epoch_limit(trainer, self.plan.batches) or self.plan.batches
        self.repeat = repeats(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The position, and the settings under which it means anything."""
        return {"epoch": self._epoch, "batch": self._batch, "settings": self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the position.

        Raises:
            UserError: it was saved under other settings; they are named.
        """
        now, then = self._settings(), state.get("settings", {})
        changed = [f"{name} {then.get(name)} -> {value}" for name, value in now.items() if then.get(name) != value]
        if changed:
            raise UserError(
                "the checkpoint's place in the training data was saved under other settings: "
                + "; ".join(changed)
                + ". Resume with the same ones (ranks: devices x num_nodes), or start a new run from its weights"
            )
        self._epoch, self._batch, self._resuming = int(state["epoch"]), int(state["batch"]), True

    def _settings(self) -> dict[str, Any]:
        counts = [s.samples for s in self.source.shards]
        return {
            "ranks": self.plan.world,
            "num_workers": self.workers.number,
            "batch_size": self.plan.batch_size,
            "batches": self.plan.batches,
            "seed": self.plan.seed,
            "shuffle": self.shuffle,
            "shards": len(counts),
            "samples": None if any(c is None for c in counts) else sum(c or 0 for c in counts),
        }
