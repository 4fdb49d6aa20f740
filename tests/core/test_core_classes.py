"""Classes by name, and none that a config of somebody else's may not name."""

from __future__ import annotations

import sys

import pytest
import torch

from clt_lightning.core.classes import known_names, load_class, short_path, subclasses
from clt_lightning.core.errors import UserError
from clt_lightning.training.optim import AdamW
from clt_lightning.transcoder import Activation, BatchTopK

OPTIMIZER = torch.optim.Optimizer


def test_names() -> None:
    assert load_class("BatchTopK", Activation, "") is BatchTopK
    assert load_class("clt_lightning.BatchTopK", Activation, "", trusted=False) is BatchTopK
    assert load_class("torch.optim.SGD", OPTIMIZER, "", trusted=False) is torch.optim.SGD
    assert known_names(Activation)[:2] == ["AbsTopK", "BatchTopK"]
    assert short_path(AdamW) == "clt_lightning.training.optim.AdamW"
    assert set(subclasses(OPTIMIZER)["AdamW"]) == {AdamW, torch.optim.AdamW}
    assert {"clt_lightning.training.optim.AdamW", "torch.optim.AdamW"} < set(known_names(OPTIMIZER))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TopKK", "there is no activation 'TopKK'; there are: AbsTopK, BatchTopK"),
        ("topk", "TopK"),
        ("clt_lightning.TopQ", "clt_lightning has no 'TopQ'"),
        ("clt_lightning.nothing.TopK", "no module clt_lightning.nothing"),
        ("torch.optim.SGD", "is no activation"),
        ("clt_lightning.transcoder.activations.from_config", "is no activation"),
        ("not a name", "is not the name of a class"),
        ("a..b", "is not the name of a class"),
    ],
)
def test_mistakes(name: str, message: str) -> None:
    for trusted in (True, False):
        with pytest.raises(UserError, match=f"^here: .*{message}"):
            load_class(name, Activation, "here", "activation", trusted=trusted)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "antigravity.x",
        "torchvision.ops.Nothing",
        "torch.serialization.os.system",
        "torch.utils.model_dump.__main__.x",
        "clt_lightning.__main__.main",
        "clt_lightning.core.classes.importlib",
    ],
)
def test_a_stranger_names_no_code(name: str) -> None:
    with pytest.raises(UserError):
        load_class(name, Activation, "", trusted=False)
    assert "antigravity" not in sys.modules
    assert "torch.utils.model_dump.__main__" not in sys.modules


def test_several_of_a_name() -> None:
    with pytest.raises(UserError, match=r"several AdamW: .*torch\.optim\.AdamW"):
        load_class("AdamW", OPTIMIZER, "model.optimizer")


def test_a_package_s_few_classes_are_all_named_beside_many_of_others() -> None:
    class Base: ...

    made = [type(f"Other{letter}", (Base,), {"__module__": "elsewhere"}) for letter in "ABCDEFGHIJ"]
    made += [type(name, (Base,), {"__module__": "clt_lightning.made"}) for name in ("Square", "Circle")]
    with pytest.raises(UserError, match="there are: Circle, Square"):
        load_class("Sqare", Base, "data", "shape")
    del made
