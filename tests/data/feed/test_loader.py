"""Loaders: exactly once, exact resume, bad samples, for every number of workers and ranks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.data.feed.batches import shuffled
from clt_lightning.data.sets.base import WebImages

from ..world import images, numbers, picture, samples, write_root, write_split, write_tar


def placed(root: Path, rank: int, world: int, **options: object) -> WebImages:
    dm = images(root, **options)
    dm.rank, dm.world_size = rank, world
    return dm


@pytest.mark.parametrize(
    ("sizes", "workers", "world"),
    [
        ([5, 9, 1, 7], 0, 3),
        ([23], 3, 1),
        ([3, 1, 20, 0, 2], 2, 2),
        ([1] * 20, 1, 4),
        ([2], 2, 4),
        ([40, 3], 8, 1),
    ],
)
def test_evaluation_reads_every_sample_once(tmp_path: Path, sizes: list[int], workers: int, world: int) -> None:
    root = write_root(tmp_path, test=sizes)
    loaders = [placed(root, r, world, num_workers=workers).test_dataloader() for r in range(world)]
    batches = [list(loader) for loader in loaders]
    assert len({len(b) for b in batches}) == 1
    assert [len(b) for b in batches] == [len(loader) for loader in loaders]
    assert numbers(b for rank in batches for b in rank) == list(range(sum(sizes)))
    for batch in (b for rank in batches for b in rank):
        assert batch["image"].shape == (len(batch["key"]), 3, 8, 8)
        values = (batch["image"][:, 0, 0, 0] * 255).round().int().tolist()
        assert values == numbers([batch])  # the image belongs to its key
        assert batch["label"].tolist() == [n % 10 for n in numbers([batch])]


@pytest.mark.parametrize(("sizes", "workers", "world"), [([50], 3, 2), ([7, 1, 30, 12], 0, 3), ([30, 20], 2, 1)])
def test_training_gives_distinct_samples_and_equal_steps(
    tmp_path: Path, sizes: list[int], workers: int, world: int
) -> None:
    root = write_root(tmp_path, train=sizes)
    loaders = [placed(root, r, world, num_workers=workers, shuffle=5).train_dataloader() for r in range(world)]
    first = [numbers(loader) for loader in loaders]
    steps = sum(sizes) // (4 * world)
    assert [len(n) for n in first] == [4 * steps] * world == [4 * len(loader) for loader in loaders]
    seen = [n for rank in first for n in rank]
    assert len(seen) == len(set(seen))
    second = [numbers(loader) for loader in loaders]
    assert second != first
    again = [placed(root, r, world, num_workers=workers, shuffle=5).train_dataloader() for r in range(world)]
    assert [numbers(loader) for loader in again] == first


def signature(batches: Iterable[dict[str, Any]]) -> list[tuple[list[str], bytes]]:
    return [(b["key"], b["image"].numpy().tobytes()) for b in batches]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_resume_is_exact(tmp_path: Path, workers: int) -> None:
    root = write_root(tmp_path, train=[31, 17])
    options = {"num_workers": workers, "shuffle": 9, "augment": "crop"}
    whole = placed(root, 1, 2, **options).train_dataloader()
    reference = [signature(whole) for _ in range(2)]
    for stop in (1, 4, len(whole)):
        first = placed(root, 1, 2, **options).train_dataloader()
        head = signature(islice(iter(first), stop))
        state = first.state_dict()
        second = placed(root, 1, 2, **options).train_dataloader()
        second.load_state_dict(state)
        iter(second)  # an iterator that is never read from changes nothing
        tail = signature(second)
        if stop < len(whole):
            assert head + tail == reference[0]
            assert signature(second) == reference[1]
        else:  # saved with the last batch of the epoch in hand
            assert (head, tail) == (reference[0], reference[1])


def test_spawned_workers_read_the_same(tmp_path: Path) -> None:
    root = write_root(tmp_path, train=[31, 17])
    options = {"num_workers": 1, "shuffle": 9, "augment": "crop"}
    reference = signature(images(root, **options).train_dataloader())
    loader = images(root, **options, start_method="spawn").train_dataloader()
    loader.load_state_dict(loader.state_dict() | {"batch": 5})
    assert signature(loader) == reference[5:]


def test_the_position_is_the_same_on_all_ranks(tmp_path: Path) -> None:
    root = write_root(tmp_path, train=[48])
    states = []
    for rank in range(2):
        loader = placed(root, rank, 2).train_dataloader()
        list(islice(iter(loader), 3))
        states.append(loader.state_dict())
    assert states[0] == states[1]
    assert (states[0]["epoch"], states[0]["batch"]) == (0, 3)


def test_resume_under_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    root = write_root(tmp_path, train=[48])
    state = placed(root, 0, 2, num_workers=2).train_dataloader().state_dict()
    with pytest.raises(UserError, match=r"num_workers 2 -> 1"):
        placed(root, 0, 2, num_workers=1).train_dataloader().load_state_dict(state)
    with pytest.raises(UserError, match=r"ranks 2 -> 1"):
        placed(root, 0, 1, num_workers=2).train_dataloader().load_state_dict(state)
    with pytest.raises(UserError, match=r"batch_size 4 -> 8.*batches 6 -> 3"):
        placed(root, 0, 2, num_workers=2, batch_size=8).train_dataloader().load_state_dict(state)


def test_an_epoch_that_is_broken_off_is_followed_by_the_next(tmp_path: Path) -> None:
    root = write_root(tmp_path, train=[48])
    whole = images(root).train_dataloader()
    epochs = [numbers(whole) for _ in range(2)]
    loader = images(root).train_dataloader()
    assert numbers(islice(iter(loader), 2)) == epochs[0][:8]
    assert numbers(loader) == epochs[1]


def test_loading_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    root = write_root(tmp_path, train=[20], test=[8])
    dm = images(root, num_workers=1, augment="flip")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    list(dm.train_dataloader())
    list(dm.test_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_per_epoch_sets_the_length(tmp_path: Path) -> None:
    root = write_root(tmp_path, train=[10])
    assert len(numbers(images(root, samples_per_epoch=27).train_dataloader())) == 24
    assert len(numbers(images(root, samples_per_epoch=5).train_dataloader())) == 4


def test_a_split_smaller_than_a_step_still_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_root(tmp_path, train=[3])
    loader = placed(root, 0, 2, batch_size=8).train_dataloader()
    assert [len(b["key"]) for b in loader] == [8]
    assert "samples repeat" in caplog.text


def test_shuffling_keeps_every_sample_once() -> None:
    import random

    mixed = list(shuffled(range(100), 10, random.Random(0)))
    assert sorted(mixed) == list(range(100))
    assert mixed != list(range(100))
    assert list(shuffled(range(5), 0, random.Random(0))) == list(range(5))


def bad_root(tmp_path: Path, bad: dict[int, dict[str, bytes]], count: int = 40) -> Path:
    made = samples(0, count)
    for i, parts in bad.items():
        made[i] = (made[i][0], parts)
    write_root(tmp_path, classes=10)
    for split in ("train", "test"):
        write_tar(tmp_path / split / "0.tar", made[: count // 2])
        write_tar(tmp_path / split / "1.tar", made[count // 2 :])
        (tmp_path / split / "nshards.txt").write_text("2")
    return tmp_path


BAD = {
    3: {"png": b"nonsense", "cls": b"1"},
    25: {"png": picture(), "cls": b"x"},
    26: {"png": picture()},
    39: {"cls": b"1"},
}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_stops_with_shard_and_key(tmp_path: Path, workers: int) -> None:
    dm = images(bad_root(tmp_path, {25: BAD[25]}), num_workers=workers)
    for loader in (dm.test_dataloader(), dm.train_dataloader()):
        with pytest.raises(UserError) as caught:
            list(loader)
        message = str(caught.value)
        assert f"{os.sep}1.tar, sample '1/s0000025': `cls` must hold one integer, but holds 'x'" in message
        assert "on_error=skip" in message
        assert "Traceback" not in message


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_counts_says_and_keeps_the_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    root = bad_root(tmp_path, BAD)
    dm = images(root, num_workers=workers, on_error="skip")
    loader = dm.test_dataloader()
    assert numbers(loader) == [i for i in range(40) if i not in BAD]
    assert dict(loader.skipped) == {"undecodable image": 1, "bad label": 1, "missing label": 1, "no image": 1}
    assert "test: 4 samples left out" in caplog.text
    assert "0/s0000003" in caplog.text
    caplog.clear()
    train = dm.train_dataloader()
    seen = numbers(train)
    assert len(seen) == 40
    assert not set(seen) & set(BAD)
    assert sum(train.skipped.values()) == 4
    assert caplog.text.count("samples left out") == 1


def test_a_pass_that_is_broken_off_says_what_it_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = images(bad_root(tmp_path, BAD), on_error="skip").test_dataloader()
    for _ in loader:
        break
    assert caplog.text.count("test: 1 samples left out") == 1


def test_resume_is_exact_with_skipped_samples(tmp_path: Path) -> None:
    root = bad_root(tmp_path, BAD)
    options = {"num_workers": 2, "on_error": "skip"}
    reference = signature(images(root, **options).train_dataloader())
    for stop in range(1, 10):
        first = images(root, **options).train_dataloader()
        head = signature(islice(iter(first), stop))
        second = images(root, **options).train_dataloader()
        second.load_state_dict(first.state_dict())
        assert head + signature(second) == reference


def test_a_split_of_bad_samples_ends_in_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "0.tar", [(f"s{i}", {"png": b"x"}) for i in range(8)])
    with pytest.raises(UserError, match="none can be used"):
        list(images(tmp_path, on_error="skip").train_dataloader())


def test_image_only_sets_have_no_label_key(tmp_path: Path) -> None:
    write_split(tmp_path / "train", [8], classes=None)
    batch = next(iter(images(tmp_path).train_dataloader()))
    assert set(batch) == {"image", "key"}
