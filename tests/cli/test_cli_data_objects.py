"""Data modules whose arguments are objects: the checks before a run make them as the run will."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import pytest
from jsonargparse import ArgumentParser

from clt_lightning.cli.checks import check_data, make_data
from clt_lightning.core.errors import UserError
from clt_lightning.data import Demo, WebImages
from clt_lightning.data.worlds.spurious import Spurious


@dataclass
class Cut:
    """A part of the images.

    Args:
        first: Where it begins.
    """

    first: int = 0


class _WithCut(WebImages):
    """As `WebImages`.

    Args:
        root: Folder.
        cut: A part.
    """

    def __init__(self, root: str, cut: Cut | None = None, **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        assert cut is None or isinstance(cut, Cut)
        self.cut = cut


def parsed(*words: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(lightning.LightningDataModule, "data")
    return parser.parse_args(list(words))


def test_a_cue_from_the_command_line(tmp_path: Path) -> None:
    words = [f"--data.root={tmp_path}", "--data.spurious.cue=corner", "--data.spurious.strength=0.9"]
    made = make_data(parsed("--data=clt_lightning.data.Demo", *words))
    assert isinstance(made, Demo)
    assert made.spurious == Spurious("corner", 0.9)


def test_an_outside_set_with_an_object_of_its_own(tmp_path: Path) -> None:
    words = [f"--data={_WithCut.__module__}._WithCut", f"--data.root={tmp_path / 'data'}", "--data.cut.first=3"]
    made = make_data(parsed(*words))
    assert made.cut == Cut(3)
    with pytest.raises(UserError, match="does not exist"):
        check_data(parsed(*words))
    (tmp_path / "data").mkdir()
    check_data(parsed(*words))
