"""The demo's world: the same on every call, labelled truly, and with room for what is nuisance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clt_lightning.data.worlds.renders import (
    CLASSNAMES,
    COLOURS,
    HELD_OUT,
    N_CLASSES,
    SHAPES,
    TEMPLATES,
    render,
)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**40), index=st.integers(0, 10**9), size=st.integers(16, 100))
def test_a_render_is_a_function_of_seed_and_index(seed: int, index: int, size: int) -> None:
    first, again = render(seed, index, size=size), render(seed, index, size=size)
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.label, first.captions) == (again.label, again.captions)
    assert (first.image.mode, first.image.size) == ("RGB", (size, size))
    assert 0 <= first.label < N_CLASSES
    assert first.captions[0] == f"a {CLASSNAMES[first.label]}"
    assert all(CLASSNAMES[first.label] in caption for caption in first.captions)


def test_the_pictures_are_the_same_as_ever() -> None:
    """The shipped CLIP was trained on these pictures: another order of draws must not go unnoticed.

    Mean colours to half a level, not bytes: a release of Pillow may round an edge differently.
    """
    means = [np.asarray(render(5, i, label=7 * i).image).mean((0, 1)) for i in range(6)]
    expected = [
        (151.32, 152.08, 137.6),
        (154.61, 134.54, 149.85),
        (65.03, 48.55, 50.45),
        (138.75, 130.53, 183.5),
        (95.45, 109.78, 113.28),
        (127.62, 142.89, 129.66),
    ]
    np.testing.assert_allclose(means, expected, atol=0.5)


def test_no_two_pictures_are_alike() -> None:
    pictures = {render(seed, index).image.tobytes() for seed in range(3) for index in range(60)}
    assert len(pictures) == 180


def test_labels_are_drawn_evenly_and_can_be_given() -> None:
    counts = np.bincount([render(1, i, size=16).label for i in range(6400)], minlength=N_CLASSES)
    # 100 of each expected, standard deviation 10
    assert counts.min() > 55
    assert counts.max() < 145
    assert [render(1, i, label=9).label for i in range(5)] == [9] * 5


def test_the_nuisance_does_not_depend_on_a_label_given() -> None:
    drawn = render(3, 4)
    assert render(3, 4, label=drawn.label).image.tobytes() == drawn.image.tobytes()


def test_the_objects_colour_is_there() -> None:
    """Averaged over many renders, the picture less its expected background leans to the class's colour."""
    for label in range(8):  # circles in every colour
        pixels = np.stack([np.asarray(render(2, i, label=label).image, dtype=float) for i in range(60)])
        others = np.stack([np.asarray(render(2, i, label=(label + 4) % 8).image, dtype=float) for i in range(60)])
        lean = (pixels - others).mean((0, 1, 2))
        expected = np.subtract(list(COLOURS.values())[label], list(COLOURS.values())[(label + 4) % 8])
        assert np.dot(lean, expected) / (np.linalg.norm(lean) * np.linalg.norm(expected)) > 0.95


def test_class_lists_fit() -> None:
    assert len(CLASSNAMES) == len(set(CLASSNAMES)) == N_CLASSES == 64
    assert {CLASSNAMES[i].split()[0] for i in HELD_OUT} == set(COLOURS)
    assert {CLASSNAMES[i].split()[1] for i in HELD_OUT} == set(SHAPES)
    assert all(template.count("{c}") == 1 for template in TEMPLATES)


@pytest.mark.parametrize("wrong", [{"index": -1}, {"size": 8}, {"label": 64}, {"label": -1}])
def test_what_cannot_be_drawn(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|does not exist"):
        render(0, **{"index": 0, **wrong})
