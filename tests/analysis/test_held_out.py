"""A study that chooses on `val` and measures on `test` refuses data where these are one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import clt_lightning as cl
from clt_lightning.analysis.held_out import refuse_shared
from clt_lightning.core.errors import UserError


def test_a_split_that_stands_in_for_another_is_refused(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"n_train": 6, "n_val": 3, "n_test": 3}
    demo = cl.data.Demo(root=str(tmp_path), **sizes)
    demo.prepare_data()
    demo.setup("test")
    refuse_shared(demo)
    test = demo.split("test")
    assert test is not None
    tar = test.shards[0].file.url
    lacks = cl.data.WebImages(train=tar, test=tar)
    lacks.setup("test")
    with pytest.raises(UserError, match=r"val and test are the same images here .* data\.init_args\.val"):
        refuse_shared(lacks)


def test_data_that_know_nothing_of_tars_are_let_through() -> None:
    refuse_shared(SimpleNamespace(classnames=["a", "b"]))
