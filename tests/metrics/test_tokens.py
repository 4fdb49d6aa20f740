"""Token sets are views of the right tokens."""

from __future__ import annotations

import pytest
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.metrics import TokenLayout, check_token_sets, select, token_mask

FOUR = TokenLayout.plain(4)


def test_select_gives_views_of_the_right_tokens() -> None:
    tokens = torch.arange(2 * 12 * 3).reshape(2, 12, 3)  # three images of four positions
    cls, patch, every = (select(tokens, name, FOUR) for name in ("cls", "patch", "all"))
    assert torch.equal(cls.flatten(1, 2), tokens[:, ::4])
    assert torch.equal(every.flatten(1, 2), tokens)
    position = torch.arange(12) % 4
    assert torch.equal(patch.flatten(1, 2), tokens[:, position != 0])
    assert {view.untyped_storage().data_ptr() for view in (cls, patch, every)} == {tokens.untyped_storage().data_ptr()}
    assert select(tokens[..., 0], "patch", FOUR).shape == (2, 3, 3)


def test_wrong_calls_are_named() -> None:
    with pytest.raises(UserError, match=r"'CLS': choose one of cls, register, patch, all"):
        select(torch.zeros(1, 4, 2), "CLS", FOUR)
    with pytest.raises(UserError, match=r"\(1, 6, 2\) does not hold whole images of 4 positions"):
        select(torch.zeros(1, 6, 2), "all", FOUR)


@pytest.mark.parametrize("names", [[], ["cls", "cls"], ["patches"], "all"])
def test_a_wrong_list_in_the_config_is_named(names: list[str]) -> None:
    with pytest.raises(UserError, match="token_sets"):
        check_token_sets(names)


def test_a_right_list_passes() -> None:
    assert check_token_sets(["all", "cls"]) == ("all", "cls")


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (TokenLayout(4), {"cls": [0], "patch": [1, 2, 3, 4]}),
        (TokenLayout(4, has_cls=False), {"patch": [0, 1, 2, 3]}),
        (TokenLayout(4, n_registers=2), {"cls": [0], "register": [1, 2], "patch": [3, 4, 5, 6]}),
        (TokenLayout(4, n_registers=2, registers_last=True), {"cls": [0], "patch": [1, 2, 3, 4], "register": [5, 6]}),
        (TokenLayout(4, has_cls=False, n_registers=1), {"register": [0], "patch": [1, 2, 3, 4]}),
    ],
)
def test_every_position_belongs_to_one_set(layout: TokenLayout, expected: dict[str, list[int]]) -> None:
    n = layout.n_positions
    assert set(layout.kinds) == set(expected)
    assert [layout.kinds[kind] for kind in layout.kind_of_positions()] == [
        next(name for name, positions in expected.items() if p in positions) for p in range(n)
    ]
    tokens = torch.arange(n).repeat(2)[None]
    for name, positions in (expected | {"all": list(range(n))}).items():
        assert layout.size(name) == len(positions)
        assert select(tokens, name, layout).tolist() == [[positions, positions]]
        assert token_mask(name, layout, 2 * n).nonzero().flatten().tolist() == [
            *positions,
            *(n + p for p in positions),
        ]
    for name in {"cls", "register"} - set(expected):
        assert layout.size(name) == 0
        with pytest.raises(UserError, match=f"this backbone has no .*; it has {', '.join(layout.sets)}"):
            layout.span(name)
        with pytest.raises(UserError, match="this backbone has no"):
            check_token_sets(["all", name], layout=layout)
