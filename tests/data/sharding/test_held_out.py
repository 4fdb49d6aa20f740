"""Which training samples are held out as `val`: each class's share, whatever the order, hardly moved by new samples."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clt_lightning.core.errors import UserError
from clt_lightning.data.sharding.held_out import VAL_FRACTION, held_out, with_held_out, with_val
from clt_lightning.data.sharding.writer import Item


def items(sizes: dict[str, int], *, first: int = 0) -> list[Item]:
    """Samples of each class; what they are made of does not matter."""
    return [
        Item(f"{group}/{i:06d}.jpg", dict, group=group) for group, n in sizes.items() for i in range(first, first + n)
    ]


def names(chosen: set[int], of: list[Item]) -> set[str]:
    return {of[i].name for i in chosen}


@given(
    sizes=st.dictionaries(st.text("abc", max_size=3), st.integers(1, 60), min_size=1, max_size=8),
    fraction=st.floats(0.001, 0.999),
)
def test_every_class_gives_its_share(sizes: dict[str, int], fraction: float) -> None:
    made = items(sizes)
    if len(made) < 2:
        return
    chosen = held_out(made, fraction, "val")
    assert 0 < len(chosen) < len(made)
    counts = Counter(made[i].group for i in chosen)
    for group, size in sizes.items():
        alone = len(chosen) in (1, len(made) - 1)  # at least one is held out, and one is left
        assert abs(counts[group] - fraction * size) < 1 + 1e-9 or alone


@pytest.mark.parametrize("fraction", [0.02, 0.05, 0.1, 0.5])
def test_whole_shares_are_exact(fraction: float) -> None:
    made = items({f"class {i}": 100 for i in range(37)})
    counts = Counter(made[i].group for i in held_out(made, fraction, "val"))
    assert counts == {f"class {i}": round(100 * fraction) for i in range(37)}


def test_small_classes_take_turns() -> None:
    made = items({f"class {i}": 10 for i in range(400)})
    counts = Counter(made[i].group for i in held_out(made, 0.05, "val"))  # half a sample of each class
    assert set(counts.values()) == {1}
    assert abs(len(counts) - 200) < 40  # 4 standard deviations


def test_the_choice_looks_at_names_alone() -> None:
    made = items({"a": 90, "b": 35, "": 7})
    mixed = random.Random(0).sample(made, len(made))
    chosen = names(held_out(made, 0.2, "val"), made)
    assert names(held_out(mixed, 0.2, "val"), mixed) == chosen
    assert names(held_out(made, 0.2, "test"), made) != chosen
    # written down: another machine, and a later version, must choose the same
    assert sorted(chosen)[:4] == ["/000002.jpg", "/000005.jpg", "a/000000.jpg", "a/000006.jpg"]


@pytest.mark.parametrize("more", [1, 7, 40])
def test_samples_that_are_added_move_hardly_any(more: int) -> None:
    sizes = {f"class {i}": 200 for i in range(10)}
    before = items(sizes)
    after = before + items({"class 3": more}, first=200)
    old, new = names(held_out(before, 0.1, "val"), before), names(held_out(after, 0.1, "val"), after)
    known = {item.name for item in before}
    moved = old ^ (new & known)
    assert all(name.startswith("class 3/") for name in moved)
    assert len(moved) <= more
    # a choice that is drawn anew moves 36 of the 200
    assert len(moved) <= 4


def test_names_that_are_no_utf8() -> None:
    made = [Item(f"a/\udce9{i}.jpg", dict, group="caf\udce9") for i in range(20)]
    assert len(held_out(made, 0.1, "val")) == 2


def test_the_splits() -> None:
    train, test = items({"a": 100}), items({"b": 10})
    made = with_val({"train": train, "test": test}, None)
    assert list(made) == ["train", "val", "test"]
    assert len(made["val"]) == 100 * VAL_FRACTION
    assert sorted(item.name for split in ("train", "val") for item in made[split]) == [item.name for item in train]
    assert made["test"] is test
    assert with_val({"train": train}, 0) == {"train": train}
    own = {"train": train, "val": test}
    assert with_val(own, None) == own
    assert with_val({"test": test}, None) == {"test": test}
    assert with_val({"train": train[:1]}, None) == {"train": train[:1]}
    both = with_val(with_held_out({"train": train}, "test", 0.2), 0.25)
    assert {split: len(part) for split, part in both.items()} == {"train": 60, "val": 20, "test": 20}


def test_a_share_that_cannot_be_taken_is_refused() -> None:
    train = items({"a": 10})
    with pytest.raises(UserError, match=r"--val-fraction 0\.1: the source has a val split of its own"):
        with_val({"train": train, "val": train}, 0.1)
    with pytest.raises(UserError, match=r"--val-fraction 0\.1: .*fewer than two training samples"):
        with_val({"test": train}, 0.1)
    with pytest.raises(UserError, match=r"--test-fraction 0\.1: the source has a test split of its own"):
        with_held_out({"train": train, "test": train}, "test", 0.1)


def test_how_many_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with_val({"train": items({"a": 500, "b": 500})}, 0.02)
    assert (
        capsys.readouterr().err
        == "val: 20 of 1,000 training samples are held out (2 % of every class; --val-fraction)\n"
    )
