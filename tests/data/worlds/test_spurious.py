"""The planted cue: how often it goes with the class, what it changes in a picture, and the groups in batches."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.data import Demo
from clt_lightning.data.worlds.renders import CLASSNAMES, CUES, render
from clt_lightning.data.worlds.spurious import Spurious

from ..world import to_tensor


@pytest.mark.parametrize(("strength", "n"), [(0.95, 2000), (0.5, 100), (1.0, 60), (0.9, 1000), (0.8, 50)])
def test_the_cue_goes_with_the_class_in_training_and_is_balanced_in_the_test(strength: float, n: int) -> None:
    world = Spurious("corner", strength)
    for split in ("train", "val"):
        counts = Counter(world.group(split, i) for i in range(n))
        with_it, against = round(n / 2 * strength), round(n / 2 * (1 - strength))
        assert [counts[group] for group in range(4)] == [with_it, against, against, with_it]
    counts = Counter(world.group("test", i) for i in range(n))
    assert max(counts.values()) - min(counts[g] for g in range(4)) <= 1


@pytest.mark.parametrize(("cue", "seed"), list(itertools.product(CUES, range(3))))
def test_twins_differ_in_the_cue_alone(cue: str, seed: int) -> None:
    """Drawn as of the other group, a picture keeps its object, its place and its noise."""
    world = Spurious(cue)
    for index in range(8):
        twins = [world.render("train", seed, index, size=48, group=2 * (index % 2) + value) for value in (0, 1)]
        (first, label, group), (second, other_label, other_group) = twins
        assert label == other_label
        assert (group, other_group) == (2 * (index % 2), 2 * (index % 2) + 1)
        changed = np.abs(np.asarray(first.image, int) - np.asarray(second.image, int)).sum(2) > 0
        assert changed.any()
        if cue == "corner":
            assert not changed[10:].any()
            assert not changed[:, 10:].any()
            plain = render(seed, index, size=48, label=label)
            assert first.image.tobytes() == plain.image.tobytes()
        elif cue == "texture":  # within the object: at most a disc of its largest radius
            assert changed.sum() < np.pi * (0.36 * 48 + 2) ** 2
        else:
            assert changed.mean() > 0.3  # the whole background
            assert not changed.all()


def test_labels_are_of_the_kind_and_of_all_classes() -> None:
    drawn = [Spurious().render("train", 1, i, size=16) for i in range(600)]
    assert all((label >= 32) == (group // 2) for _, label, group in drawn)
    assert len({label for _, label, _ in drawn}) == 64
    pair = Spurious(classes=["circle", "star"])
    for made, label, group in (pair.render("val", 1, i, size=16) for i in range(100)):
        assert label == group // 2
        assert CLASSNAMES[made.label].endswith(("circle", "star")[label])
    assert pair.classnames == ["circle", "star"]
    assert pair.groupnames == ["circle on sand", "circle on water", "star on sand", "star on water"]


def demo(root: Path, spurious: Any, **options: Any) -> Demo:
    dm = Demo(root=root, n_train=80, n_test=40, n_val=20, size=16, batch_size=8, seed=3, spurious=spurious, **options)
    dm.transform = to_tensor
    dm.setup()
    return dm


def test_batches_have_the_group(tmp_path: Path) -> None:
    dm = demo(tmp_path, {"cue": "background", "strength": 0.9, "classes": ["circle", "star"]})
    assert dm.classnames == ["circle", "star"]
    assert dm.groupnames == ["circle on sand", "circle on water", "star on sand", "star on water"]
    for split, expected in (("train", [36, 4, 4, 36]), ("test", [10, 10, 10, 10])):
        batches = list(dm.eval_dataloader(split))
        groups = torch.cat([batch["group"] for batch in batches])
        assert groups.dtype == torch.int64
        assert groups.bincount(minlength=4).tolist() == expected
        assert torch.equal(groups // 2, torch.cat([batch["label"] for batch in batches]))
    batch = next(iter(dm.train_dataloader()))
    assert batch["group"].shape == (8,)
    assert dm.describe()["renders"]["spurious"] == {
        "cue": "background",
        "strength": 0.9,
        "classes": ["circle", "star"],
    }


def test_worlds_do_not_mix_on_disk(tmp_path: Path) -> None:
    plain, planted, again = demo(tmp_path, None), demo(tmp_path, Spurious()), demo(tmp_path, {"strength": 0.95})
    assert plain.root != planted.root == again.root
    assert plain.groupnames is None
    assert "group" not in next(iter(plain.val_dataloader()))
    assert "group" in next(iter(planted.val_dataloader()))
    assert planted.classnames == plain.classnames == CLASSNAMES


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"cue": "colour"}, "spurious.cue must be one of texture, background, corner, but is 'colour'"),
        ({"strength": 0.3}, r"spurious.strength must be a number from 0.5 to 1, but is 0.3"),
        ({"strength": "much"}, "spurious.strength must be a number"),
        ({"strenght": 0.9}, "spurious has no key 'strenght'; there are: cue, strength, classes"),
        ({"classes": ["circle"]}, "classes must be two"),
        ({"classes": "circle"}, "classes must be two"),
        ({"classes": ["circle", "dog"]}, "no class is called 'dog'; there are: red, orange"),
        ({"classes": ["circle", "red"]}, "'red circle' is in both"),
        ({"classes": ["star", "star"]}, "is in both"),
    ],
)
def test_what_is_no_cue_is_refused(tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Demo(root=tmp_path, spurious=wrong)
    assert not list(tmp_path.iterdir())


def test_a_cue_that_there_is_not_is_refused_by_the_drawing() -> None:
    with pytest.raises(ValueError, match=r"there are texture, background, corner, each with the values 0 and 1"):
        render(0, 0, cue=("corner", 2))
