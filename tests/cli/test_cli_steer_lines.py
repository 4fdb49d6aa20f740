"""What `steer` prints of its edits and of what changed."""

from __future__ import annotations

import pytest
import torch

from clt_lightning.analysis import Edit, SteeringResult
from clt_lightning.cli.steer import show, where


def test_edits_with_a_position_say_where_they_act() -> None:
    one, other = Edit.parse("set", "0/12@0=3"), Edit.parse("set", "1/3=2")
    assert where([other], "patch", "original") == "at patch tokens of the original model"
    assert where([one, other], "all", "replaced") == "at all tokens, or where it is said, of the replaced model"
    assert where([one], "all", "original") == "in the original model"


@pytest.mark.parametrize("change", [0.0, 3e-5, 0.02])
def test_classes_that_change_are_shown_and_no_others(change: float, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.tensor([[0.5, 0.3, 0.2]]).double().repeat(9, 1)
    after = before + torch.tensor([change, -change, 0.0])
    keys = [str(i) for i in range(len(before))]
    show(SteeringResult(keys, torch.full((len(before),), -1), ["a", "b", "c"], before, after), 5)
    shown = capsys.readouterr().out
    if change < 1e-3:
        assert "no class's mean probability changes by 0.01 points" in shown
        assert "mean probability of" not in shown
    else:
        assert [line.split()[:3] for line in shown.splitlines()[-2:]] == [
            ["a", "50.00%", "52.00%"],
            ["b", "30.00%", "28.00%"],
        ]
