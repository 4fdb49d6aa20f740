"""Who reads what: exactly once in evaluation, distinct and equally long in training."""

from __future__ import annotations

from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from clt_lightning.data.feed.plan import EvalPlan, TrainPlan
from clt_lightning.data.tars.reader import Run

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=20).filter(lambda c: sum(c) > 0)


def expanded(runs: list[Run]) -> list[tuple[int, int]]:
    found = []
    for run in runs:
        assert run.stop is not None
        found += [(run.shard, i) for i in range(run.start, run.stop, run.step)]
    return found


@settings(max_examples=200, deadline=None)
@given(counts=COUNTS, world=st.integers(1, 5), batch=st.integers(1, 9))
def test_evaluation_reads_every_sample_once_in_order(counts: list[int], world: int, batch: int) -> None:
    plans = [EvalPlan(counts, batch, rank, world) for rank in range(world)]
    read = [s for plan in plans for n in range(len(plan)) for s in expanded(plan.batch(n))]
    assert read == [(shard, i) for shard, count in enumerate(counts) for i in range(count)]
    assert len({len(plan) for plan in plans}) == 1
    sizes = [len(expanded(plan.batch(n))) for plan in plans for n in range(len(plan))]
    corner = batch == 1 and sum(counts) % world > 0
    assert max(sizes) <= batch + corner
    if sum(counts) >= world:
        assert min(sizes) >= 1


@given(counts=COUNTS, limit=st.integers(1, 40), world=st.integers(1, 3))
def test_a_limit_takes_that_many_distinct_samples(counts: list[int], limit: int, world: int) -> None:
    plans = [EvalPlan(counts, 4, rank, world, limit) for rank in range(world)]
    read = [s for plan in plans for n in range(len(plan)) for s in expanded(plan.batch(n))]
    assert len(read) == len(set(read)) == min(limit, sum(counts))


def test_batches_are_full_but_for_the_rest() -> None:
    def sizes(count: int, batch: int, world: int) -> list[list[int]]:
        plans = [EvalPlan([count], batch, rank, world) for rank in range(world)]
        return [[len(expanded(plan.batch(n))) for n in range(len(plan))] for plan in plans]

    assert sizes(10, 4, 1) == [[4, 4, 2]]
    assert sizes(17, 4, 2) == [[4, 3, 1], [4, 4, 1]]
    assert sizes(5, 1, 2) == [[1, 1], [1, 2]]
    assert sizes(2, 4, 3) == [[0], [1], [1]]


def test_a_limit_is_spread_over_the_split() -> None:
    plan = EvalPlan([50, 50], 10, limit=10)
    assert expanded(plan.batch(0)) == [(s, i) for s in (0, 1) for i in range(0, 50, 10)]


@settings(max_examples=200, deadline=None)
@given(
    counts=COUNTS,
    world=st.integers(1, 4),
    workers=st.integers(1, 8),
    batch=st.integers(1, 5),
    block=st.sampled_from([None, 1, 7, 256]),
    epoch=st.integers(0, 3),
)
def test_training_samples_are_distinct_and_steps_equal(
    counts: list[int], world: int, workers: int, batch: int, block: int | None, epoch: int
) -> None:
    batches = sum(counts) // (world * batch)
    read = []
    for rank in range(world):
        plan = TrainPlan(counts, batches, batch, 3, epoch, rank, world, workers, block)
        mine = [expanded(list(plan.runs(w))) for w in range(workers)]
        assert [len(m) for m in mine] == [plan.worker_batches(w) * batch for w in range(workers)]
        assert sum(plan.worker_batches(w) for w in range(workers)) == batches
        read += [s for m in mine for s in m]
    assert len(read) == len(set(read)) == batches * world * batch
    assert all(i < counts[shard] for shard, i in read)


def test_an_epoch_longer_than_the_split_takes_whole_passes() -> None:
    read = expanded(list(TrainPlan([3, 4], batches=7, batch_size=3).runs(0)))
    assert len(read) == 21
    assert all(read.count(s) == 3 for s in set(read))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(**how: int) -> list[tuple[int, int]]:
        return expanded(list(TrainPlan([40, 40], 10, 8, block=8, **how).runs(0)))

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert order(seed=1, epoch=2) != order(seed=1, epoch=3)
    assert order(seed=1, epoch=2) != order(seed=2, epoch=2)


@given(shards=st.integers(1, 6), world=st.integers(1, 3), workers=st.integers(1, 4))
def test_uncounted_shards_are_dealt_out_whole_or_shared_by_stride(shards: int, world: int, workers: int) -> None:
    seen = []
    for rank in range(world):
        for worker in range(workers):
            plan = TrainPlan([None] * shards, 5, 2, rank=rank, world=world, workers=workers)
            slots = world * workers
            mine = len(range(rank * workers + worker, shards, slots)) if shards >= slots else 1
            for run in islice(plan.runs(worker), mine):
                assert run.stop is None
                seen += [(run.shard, i) for i in range(run.start, 60, run.step)]
    assert sorted(seen) == [(s, i) for s in range(shards) for i in range(60)]
