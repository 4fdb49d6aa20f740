"""Activations from outside the package: saved by their full path, found again, and never taken for one of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.core.classes import load_class
from clt_lightning.core.errors import UserError
from clt_lightning.training.losses import CascadeConfig, LossConfig
from clt_lightning.transcoder import Activation, CrossLayerTranscoder, ReLU
from clt_lightning.transcoder.activations import from_config
from clt_lightning.transcoder.files import export
from tests.parallel._outside import Crowned, Eager, FewTopK, Gate

CODE = """
import torch
from clt_lightning.transcoder import Activation

class TopK(Activation):
    scope = "feature"
    def __init__(self, k=3, *, share: float = 0.5) -> None:
        super().__init__()
    def select(self, pre, layer):
        return pre > 0.25
    def values(self, pre, features, layer):
        return 2 * torch.relu(pre)
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of somebody else's whose activation is called TopK."""
    (tmp_path / "foreign_parts.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import foreign_parts

    yield foreign_parts
    sys.modules.pop("foreign_parts", None)


def test_a_foreign_topk_stays_itself(foreign: ModuleType, tmp_path: Path) -> None:
    clt = CrossLayerTranscoder(2, 4, 8, foreign.TopK(5), seed=0).eval()
    x = torch.randn(2, 6, 4)
    expected = clt.encode(x).dense()
    folder = clt.save_pretrained(tmp_path / "saved")
    again = CrossLayerTranscoder.from_pretrained(folder)  # imported already
    assert again.activation.config() == {"class_path": "foreign_parts.TopK", "init_args": {"k": 5, "share": 0.5}}
    assert torch.equal(again.encode(x).dense(), expected)

    assert load_class("TopK", Activation, "") is cl.TopK
    del sys.modules["foreign_parts"]
    with pytest.raises(UserError, match=r"foreign_parts\.TopK.*trust=True"):
        CrossLayerTranscoder.from_pretrained(folder)
    assert "foreign_parts" not in sys.modules
    again = CrossLayerTranscoder.from_pretrained(folder, trust=True)
    assert torch.equal(again.encode(x).dense(), expected)


def test_own_ones_keep_their_bare_names() -> None:
    assert cl.BatchTopK(3).config()["class_path"] == "BatchTopK"
    assert type(from_config({"class_path": "clt_lightning.TopK"})) is cl.TopK
    assert from_config({"class_path": "tests.parallel._outside.Gate"}, trusted=False).init_args() == {"least": 0.1}
    with pytest.raises(UserError, match=r"unknown activation 'Gate'.*full path"):
        from_config({"class_path": "Gate"})


def test_what_was_written_for_another_select_is_not_inherited() -> None:
    for cls in (FewTopK, Crowned):
        assert str(cls.scope) == "batch"
        assert cls.choose is Activation.choose
        assert cls.select_part is Activation.select_part
    assert Eager.select_part is cl.BatchTopK.select_part  # it changes the budget alone
    clt = CrossLayerTranscoder(2, 8, 256, FewTopK(6), seed=0).eval()
    x = torch.randn(2, 40, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert int(clt.encode(x).dense().count_nonzero(2).max()) <= 3


@pytest.mark.parametrize("format", ["circuit-tracer", "sae-lens"])
def test_a_subclass_is_not_exported_as_its_parent(format: str, tmp_path: Path) -> None:
    for activation in (Crowned(), Eager(2)):
        clt = CrossLayerTranscoder(1, 4, 8, activation, topology="per_layer", seed=0)
        with pytest.raises(UserError, match=type(activation).__name__):
            export(clt, tmp_path / "out", format, {}, torch.float32, None)


class _Odd(ReLU):
    """An argument that no file can hold."""

    def __init__(self, function: Any = None) -> None:
        super().__init__()


class _Forgetful(ReLU):
    """Does not say what it was made with."""

    def __init__(self, least: float) -> None:
        super().__init__()

    def init_args(self) -> dict[str, Any]:
        return {}


def local() -> Activation:
    class Local(Gate):
        pass

    return Local()


def of_the_script() -> Activation:
    made = type("_Mine", (ReLU,), {"__module__": "__main__"})()
    assert isinstance(made, Activation)
    return made


@pytest.mark.parametrize(
    ("activation", "why"),
    [
        (local(), "inside a function"),
        (of_the_script(), "in the script that was started"),
        (_Odd(lambda x: x), "plain values"),
        (_Odd(float("nan")), "plain values"),
        (_Forgetful(1.0), r"init_args\(\) does not name its argument least"),
    ],
    ids=["local", "script", "function", "nan", "forgetful"],
)
def test_what_could_not_be_loaded_again_is_refused_at_fit(activation: Activation, why: str, tmp_path: Path) -> None:
    module = cl.CLTModule(
        {"init_args": {"pretrained": "demo"}},
        cl.TranscoderConfig(n_features=8, activation=activation),
        LossConfig(cascade=CascadeConfig(0, 0)),
        seed=0,
    )
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    images: list[Tensor] = [torch.rand(2, 3, 32, 32)]
    with pytest.raises(UserError, match=rf"model\.transcoder\.activation: .*{why}"):
        trainer.fit(module, images)
