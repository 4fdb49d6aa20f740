"""Under the zero-shot table stands why it says little, where that is so."""

from __future__ import annotations

from pathlib import Path

import pytest

from clt_lightning.callbacks import Table, ZeroShot

from .world import Made, module, trainer


@pytest.mark.filterwarnings("ignore:this CLIP has random weights")
def test_the_table_of_a_clip_with_random_weights_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, ZeroShot(), Table()).validate(module(), datamodule=Made(), verbose=False)
    lines = capsys.readouterr().out.splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("layers 0-2 replaced"))
    assert lines[row + 1].startswith("note: this CLIP has random weights (pretrained is null): its zero-shot")
    assert max(map(len, lines)) <= 98


@pytest.mark.filterwarnings("ignore:.*class names", "ignore:this CLIP has random weights")
def test_names_that_are_alike_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Made()
    data.classnames = ["Cat", "cat", "red car", "tree", "boat", "lamp", "chair"]
    trainer(tmp_path, ZeroShot(), Table()).validate(module(), datamodule=data, verbose=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "note: 2 of 7 class names are the same text" in text
    assert "'Cat' = 'cat'" in text
