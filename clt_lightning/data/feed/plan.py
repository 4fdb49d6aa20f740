"""Who reads what: pure arithmetic, no file is touched.

A *run* is a stretch of neighbouring samples of one shard. Evaluation cuts the split by sample, so that every sample is
read once for every number of shards, ranks and workers. Training cuts a reshuffled sequence of small blocks, so that
samples are distinct on all ranks and workers and every rank takes the same number of steps.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from clt_lightning.data.tars.reader import Run

BLOCK_SAMPLES = 256


@dataclass(frozen=True)
class EvalPlan:
    """Every sample exactly once, in order, with the same number of batches on every rank.

    Rank r gets the r-th of `world` contiguous stretches (sizes differ by at most one) and cuts it into full batches and
    a rest. The number of batches is the same on all ranks, since DDP may hang otherwise:
    `ceil(ceil(samples / world) / batch_size)`; a rank whose last batch would be empty gives it one sample of the batch
    before. Two corners: with `batch_size=1` and a remainder, the last batch of a rank may hold 2 samples; with fewer
    samples than ranks, the ranks without a sample get one empty batch.

    Args:
        counts: samples of each shard.
        batch_size: samples per batch at most (but for the corner above).
        rank, world: this rank and their number.
        limit: use only this many samples, evenly spaced over the split.
    """

    counts: Sequence[int]
    batch_size: int
    rank: int = 0
    world: int = 1
    limit: int | None = None
    _ends: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", list(accumulate(self.counts)))

    @property
    def total(self) -> int:
        """Samples in the split."""
        return self._ends[-1] if self._ends else 0

    @property
    def used(self) -> int:
        """Samples that all ranks read together."""
        return self.total if self.limit is None else min(self.limit, self.total)

    def __len__(self) -> int:
        if self.used == 0:
            return 0
        largest = math.ceil(self.used / self.world)
        return max(1, min(math.ceil(largest / self.batch_size), self.used // self.world))

    def batch(self, number: int) -> list[Run]:
        """The runs of this rank's batch `number`."""
        low, high = (self.used * (self.rank + i) // self.world for i in (0, 1))
        start, stop = (low + self._begin(number + i, high - low) for i in (0, 1))
        runs: list[Run] = []
        for position in range(start, stop):
            sample = position if self.used == self.total else position * self.total // self.used
            shard = bisect_right(self._ends, sample)
            offset = sample - (self._ends[shard] - self.counts[shard])
            if runs and runs[-1].shard == shard and runs[-1].stop == offset:
                runs[-1] = Run(shard, runs[-1].start, offset + 1)
            else:
                runs.append(Run(shard, offset, offset + 1))
        return runs

    def _begin(self, number: int, samples: int) -> int:
        """Where batch `number` begins among a rank's samples: full batches, and at least one sample for each."""
        left = len(self) - number
        return samples if left == 0 else max(0, min(number * self.batch_size, samples - left))


@dataclass(frozen=True)
class TrainPlan:
    """The runs of every (rank, worker) for one epoch of training.

    All shards are cut into blocks, the blocks are put in an order drawn from (seed, epoch), and the sequence is cut
    into one contiguous stretch a (rank, worker), as long as its batches need: no sample twice, whatever the number
    of shards. An epoch longer than the split goes on into the next reshuffled pass.

    Args:
        counts: samples of each shard; None for shards that nobody has counted (then whole shards are dealt out, and
            workers that must share one take every n-th sample of it).
        batches: batches of every rank in the epoch.
        batch_size: samples per batch.
        seed, epoch: the order is a function of both.
        rank, world, workers: the grid of readers.
        block: samples per block; None keeps shards whole (for tars that cannot be entered in the middle).
    """

    counts: Sequence[int | None]
    batches: int
    batch_size: int
    seed: int = 0
    epoch: int = 0
    rank: int = 0
    world: int = 1
    workers: int = 1
    block: int | None = BLOCK_SAMPLES

    def worker_batches(self, worker: int) -> int:
        """How many of the rank's batches come from this worker: batch i comes from worker `i % workers`."""
        return (self.batches - worker + self.workers - 1) // self.workers

    def runs(self, worker: int) -> Iterator[Run]:
        """The worker's runs, in order; they hold exactly its samples, or go on for ever with uncounted shards."""
        if any(c is None for c in self.counts):
            return self._uncounted(worker)
        return self._counted(worker)

    def _counted(self, worker: int) -> Iterator[Run]:
        counts = [int(c or 0) for c in self.counts]
        total = sum(counts)
        assert total > 0
        before = sum(self.worker_batches(w) for w in range(worker))
        start = (self.rank * self.batches + before) * self.batch_size
        stop = start + self.worker_batches(worker) * self.batch_size
        while start < stop:
            number, offset = divmod(start, total)
            upto = min(stop - number * total, total)
            yield from _cut(self._blocks(counts, number), offset, upto)
            start = number * total + upto

    def _blocks(self, counts: Sequence[int], number: int) -> list[Run]:
        blocks = []
        for shard, count in enumerate(counts):
            size = self.block or max(count, 1)
            blocks += [Run(shard, at, min(at + size, count)) for at in range(0, count, size)]
        random.Random(f"{self.seed}-{self.epoch}-{number}").shuffle(blocks)
        return blocks

    def _uncounted(self, worker: int) -> Iterator[Run]:
        shards, slots = len(self.counts), self.world * self.workers
        slot = self.rank * self.workers + worker
        number = 0
        while True:
            order = list(range(shards))
            random.Random(f"{self.seed}-{self.epoch}-{number}").shuffle(order)
            if shards >= slots:
                yield from (Run(shard, 0, None) for shard in order[slot::slots])
            else:
                sharers = len(range(slot % shards, slots, shards))
                yield Run(order[slot % shards], slot // shards, None, sharers)
            number += 1


def _cut(blocks: Sequence[Run], start: int, stop: int) -> Iterator[Run]:
    """The part of a sequence of blocks between two sample positions."""
    at = 0
    for run in blocks:
        assert run.stop is not None
        size = run.stop - run.start
        low, high = max(start - at, 0), min(stop - at, size)
        if low < high:
            yield Run(run.shard, run.start + low, run.start + high)
        at += size
        if at >= stop:
            return
