"""Token sets are views of the right tokens."""

from __future__ import annotations

import pytest
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.metrics import check_token_sets, select


def test_select_gives_views_of_the_right_tokens() -> None:
    tokens = torch.arange(2 * 12 * 3).reshape(2, 12, 3)  # three images of four positions
    cls, patch, every = (select(tokens, name, 4) for name in ("cls", "patch", "all"))
    assert torch.equal(cls.flatten(1, 2), tokens[:, ::4])
    assert torch.equal(every.flatten(1, 2), tokens)
    position = torch.arange(12) % 4
    assert torch.equal(patch.flatten(1, 2), tokens[:, position != 0])
    assert {view.untyped_storage().data_ptr() for view in (cls, patch, every)} == {tokens.untyped_storage().data_ptr()}
    assert select(tokens[..., 0], "patch", 4).shape == (2, 3, 3)


def test_wrong_calls_are_named() -> None:
    with pytest.raises(UserError, match=r"'CLS': expected one of \['cls', 'patch', 'all'\]"):
        select(torch.zeros(1, 4, 2), "CLS", 4)
    with pytest.raises(UserError, match=r"\(1, 6, 2\) does not hold whole images of 4 positions"):
        select(torch.zeros(1, 6, 2), "all", 4)


@pytest.mark.parametrize("names", [[], ["cls", "cls"], ["patches"], "all"])
def test_a_wrong_list_in_the_config_is_named(names: list[str]) -> None:
    with pytest.raises(UserError, match="token_sets"):
        check_token_sets(names)


def test_a_right_list_passes() -> None:
    assert check_token_sets(["all", "cls"]) == ("all", "cls")
