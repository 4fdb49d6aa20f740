"""Selecting and subsampling tokens: x and y stay paired, positions are what they say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clt_lightning.backbone.clip import Activations, random_positions
from clt_lightning.core.errors import UserError


def numbered(n_images: int, n_positions: int, layers: int = 2) -> Activations:
    """x holds (layer, image, position) of every token, y the same times -1."""
    grid = torch.cartesian_prod(torch.arange(layers), torch.arange(n_images), torch.arange(n_positions)).float()
    x = grid.view(layers, n_images * n_positions, 3)
    return Activations(x, -x, n_images, n_positions, tuple(range(layers)))


def test_select_splits_the_tokens_of_every_image() -> None:
    acts = numbered(4, 5)
    cls, patch = acts.select("cls"), acts.select("patch")
    assert (cls.n_positions, patch.n_positions, cls.n_tokens, patch.n_tokens) == (1, 4, 4, 16)
    assert (cls.x[..., 2] == 0).all()
    assert (patch.x[..., 2] > 0).all()
    assert cls.x[1, :, 1].tolist() == [0, 1, 2, 3]
    assert torch.equal(patch.y, -patch.x)
    assert patch.x.is_contiguous()
    assert acts.select("all") is acts
    assert patch.select("patch") is patch


@pytest.mark.parametrize(("first", "then"), [("cls", "patch"), ("patch", "cls"), ("patch", "all")])
def test_what_was_dropped_cannot_be_selected(first: str, then: str) -> None:
    with pytest.raises(UserError, match=f"'{then}'.*'{first}'"):
        numbered(2, 3).select(first).select(then)


def test_unknown_token_set_is_named() -> None:
    with pytest.raises(UserError, match="'patches'"):
        numbered(2, 3).select("patches")


@given(
    n_images=st.integers(1, 6),
    n_positions=st.integers(2, 9),
    wanted=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    tokens=st.sampled_from(["all", "patch"]),
)
def test_subsample_keeps_pairs_and_says_where_they_were(
    n_images: int, n_positions: int, wanted: int, seed: int, tokens: str
) -> None:
    acts = numbered(n_images, n_positions).select(tokens)
    some = acts.subsample(wanted, torch.Generator().manual_seed(seed))
    if wanted >= acts.n_positions:
        assert some is acts
        return
    assert torch.equal(some.y, -some.x)
    assert some.positions is not None
    by_image = some.x.view(2, n_images, wanted, 3)
    assert torch.equal(by_image[0, ..., 2], some.positions.float())
    assert torch.equal(by_image[1, ..., 1], torch.arange(n_images).view(-1, 1).expand(-1, wanted).float())
    assert all(len(set(row)) == wanted for row in some.positions.tolist())
    again = acts.subsample(wanted, torch.Generator().manual_seed(seed))
    assert torch.equal(again.x, some.x)
    if wanted > 1:
        fewer = some.subsample(1, torch.Generator().manual_seed(seed))
        assert fewer.positions is not None
        assert torch.equal(fewer.x[0, :, 2], fewer.positions.flatten().float())
    with pytest.raises(UserError, match="subsampled"):
        some.select("cls")


def test_every_position_is_drawn_equally_often() -> None:
    drawn = random_positions(20_000, 5, 2, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn.flatten(), minlength=5) / 20_000
    assert ((share - 0.4).abs() < 0.02).all()


def test_more_positions_than_there_are() -> None:
    with pytest.raises(UserError, match="6 of 5"):
        random_positions(2, 5, 6)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="x and y must be"):
        Activations(torch.zeros(2, 7, 3), torch.zeros(2, 7, 3), 2, 4, (0, 1))
