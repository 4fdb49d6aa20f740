"""The worker's side of a loader: reads a plan's runs, decodes, collates, and sends packets to the main process.

A packet is `{"batch": …, "skipped": [(kind, where), …]}`, or `{"error": message}` for a mistake of the user's.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from torch.utils.data import IterableDataset, get_worker_info

from clt_lightning.core.errors import UserError
from clt_lightning.data.feed.decode import DecodeError, Decoder, collate
from clt_lightning.data.feed.plan import EvalPlan, TrainPlan
from clt_lightning.data.tars.reader import BadSample, RawSample, Run, ShardReader
from clt_lightning.data.tars.scan import ShardIndex

_MAX_DRAWS = 100
_MAX_EMPTY_RUNS = 1000


@dataclass(frozen=True)
class Source:
    """What workers need to make samples of one split.

    Args:
        shards: the index of every tar.
        decoder: raw sample to entry.
        on_error: `raise` stops at a bad sample, `skip` leaves it out and counts it.
        allow_pipe: whether addresses that run a shell command are allowed.
    """

    shards: Sequence[ShardIndex]
    decoder: Decoder
    on_error: Literal["raise", "skip"] = "raise"
    allow_pipe: bool = False

    def reader(self) -> ShardReader:
        return ShardReader(self.shards, allow_pipe=self.allow_pipe)

    def decode(self, raw: RawSample | BadSample, skipped: list[tuple[str, str]]) -> dict[str, Any] | None:
        """The sample, or None (noted in `skipped`) for one that is bad and may be left out."""
        if isinstance(raw, RawSample):
            try:
                return self.decoder(raw)
            except DecodeError as error:
                raw = BadSample(error.kind, raw.key, f"shard {raw.url}, sample {raw.key!r}: {error}")
        if self.on_error == "raise":
            raise UserError(
                f"{raw.message}. Mend the shard, or set data.init_args.on_error=skip to leave such samples out "
                "and count them."
            )
        skipped.append((raw.kind, raw.where))
        return None

    def packet(self, samples: list[dict[str, Any]], skipped: list[tuple[str, str]]) -> dict[str, Any]:
        d = self.decoder
        return {"batch": collate(samples, d.fields, d.transform, d.n_classes), "skipped": skipped}


class Batches(IterableDataset[Any]):
    """Yields packets; a UserError travels as data, since DataLoader would wrap its message in a traceback."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        try:
            yield from self.packets(info.id if info else 0, info.num_workers if info else 1)
        except UserError as error:
            yield {"error": str(error)}

    def packets(self, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        raise NotImplementedError


class EvalBatches(Batches):
    """This rank's batches of an `EvalPlan`; batch i comes from worker `i % workers`."""

    def __init__(self, source: Source, plan: EvalPlan) -> None:
        self.source, self.plan = source, plan

    def packets(self, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        reader = self.source.reader()
        for number in range(worker, len(self.plan), workers):
            skipped: list[tuple[str, str]] = []
            raws = (raw for run in self.plan.batch(number) for raw in reader.read(run))
            samples = [s for raw in raws if (s := self.source.decode(raw, skipped)) is not None]
            yield self.source.packet(samples, skipped)
        reader.close()


class TrainBatches(Batches):
    """This rank's batches of a `TrainPlan`, from batch `first` on.

    A DataLoader always begins with worker 0; after resuming at batch i, worker w takes the part of `(w + i) % workers`.
    Raw samples are shuffled before decoding, so the buffer holds files, not tensors. A bad sample is replaced by one
    that is drawn from the whole split, as a function of its place: the other samples stay where they are, and a
    resumed run passes over delivered samples without decoding them.
    """

    def __init__(self, source: Source, plan: TrainPlan, shuffle: int, first: int) -> None:
        self.source, self.plan, self.shuffle, self.first = source, plan, shuffle, first

    def packets(self, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        part = (worker + self.first) % workers
        done = len(range(part, self.first, workers))
        size = self.plan.batch_size
        tag = f"{self.plan.seed}-{self.plan.epoch}-{self.plan.rank}-{part}"
        raws = islice(self._raw(part), self.plan.worker_batches(part) * size)
        stream = islice(shuffled(raws, self.shuffle, random.Random(tag)), done * size, None)
        for number in range(done, self.plan.worker_batches(part)):
            skipped: list[tuple[str, str]] = []
            samples = []
            for place, raw in enumerate(islice(stream, size), number * size):
                sample = self.source.decode(raw, skipped)
                samples.append(sample if sample is not None else self._another(random.Random(f"{tag}-{place}"), raw))
            assert len(samples) == size
            yield self.source.packet(samples, skipped)

    def _raw(self, part: int) -> Iterator[RawSample | BadSample]:
        reader, empty = self.source.reader(), 0
        for run in self.plan.runs(part):
            empty += 1
            for raw in reader.read(run):
                empty = 0
                yield raw
            if empty > _MAX_EMPTY_RUNS:
                raise UserError("training: the shards hold no sample for this worker; lower data.init_args.num_workers")
        reader.close()

    def _another(self, rng: random.Random, bad: RawSample | BadSample) -> dict[str, Any]:
        reader = self.source.reader()
        shards = self.source.shards
        for _ in range(_MAX_DRAWS):
            # an uncounted shard gives one of its first samples
            shard = rng.choices(range(len(shards)), [64 if s.samples is None else s.samples for s in shards])[0]
            start = rng.randrange(64 if (samples := shards[shard].samples) is None else samples)
            for raw in reader.read(Run(shard, start, start + 1)):
                if (sample := self.source.decode(raw, [])) is not None:
                    reader.close()
                    return sample
        where = bad.key if isinstance(bad, RawSample) else bad.where
        raise UserError(
            f"training: in place of the bad sample {where!r}, {_MAX_DRAWS} others were drawn and none can be used: "
            "look at the shards (data.init_args.on_error=raise names what is wrong)"
        )


def shuffled(samples: Iterable[Any], size: int, rng: random.Random) -> Iterator[Any]:
    """Hands out samples in an order mixed over a buffer of `size`; every sample once."""
    if size <= 1:
        yield from samples
        return
    buffer: list[Any] = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        i = rng.randrange(size)
        buffer[i], sample = sample, buffer[i]
        yield sample
    rng.shuffle(buffer)
    yield from buffer
