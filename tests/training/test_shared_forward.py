"""One forward for several modules: what is equal is run once, nothing else is taken for it."""

from __future__ import annotations

import torch

from clt_lightning.training.shared_forward import SharedForward


def test_equal_tensors_share_and_others_do_not() -> None:
    shared, images = SharedForward(), torch.rand(2, 3)
    assert shared("sites", (images, None), lambda: 1) == 1
    assert shared("sites", (images.clone(), None), lambda: 2) == 1
    assert shared("clean", (images, None), lambda: 3) == 3
    assert shared("sites", (images, torch.zeros(1)), lambda: 4) == 4  # other positions
    assert shared("sites", (images, None), lambda: 5) == 5  # the last of a kind alone is kept
    changed = images.clone()
    changed[0, 0] += 1
    assert shared("sites", (changed, None), lambda: 6) == 6
    assert shared("sites", (changed.double(), None), lambda: 7) == 7
    assert (shared.asked, shared.run) == (7, 6)


def test_modes_of_the_forward_are_kept_apart() -> None:
    shared, images = SharedForward(), torch.rand(2, 3)
    shared("sites", (images,), lambda: 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert shared("sites", (images,), lambda: 2) == 2
    with torch.inference_mode():
        assert shared("sites", (images,), lambda: 3) == 3
    assert shared("sites", (images,), lambda: 4) == 1
    shared.clear()
    assert shared("sites", (images,), lambda: 5) == 5


def test_nan_is_equal_to_nothing() -> None:
    shared, images = SharedForward(), torch.full((2,), torch.nan)
    shared("sites", (images,), lambda: 1)
    assert shared("sites", (images.clone(),), lambda: 2) == 2
