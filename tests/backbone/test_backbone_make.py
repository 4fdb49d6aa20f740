"""A backbone from a class and its arguments, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import clt_lightning as cl
from clt_lightning.backbone.make import differences, make_backbone, spec_of
from clt_lightning.core.errors import UserError


class MyViT(cl.FrozenViT):
    """A backbone of a user's own, with an argument that cannot be written down."""

    def __init__(self, scale: float = 1.0, extra: Any = None, **more: Any) -> None:
        super().__init__("vit_tiny_patch16_224", None, image_size=32, **more)
        self.scale = scale


def test_there_and_back() -> None:
    clip = make_backbone({"pretrained": "demo"})
    spec = spec_of(clip)
    assert spec["class_path"].endswith("FrozenCLIP")
    assert spec["init_args"] == {"name": "ViT-B-32-quickgelu", "pretrained": "demo", "precision": "fp32", "seed": 0}
    assert make_backbone(spec).describe() == clip.describe()
    vit = make_backbone(
        {"class_path": "FrozenViT", "init_args": {"name": "vit_tiny_patch16_224", "pretrained": None, "image_size": 32}}
    )
    assert isinstance(vit, cl.FrozenViT)
    assert make_backbone(vit) is vit
    assert make_backbone(spec_of(vit)).describe() == vit.describe()
    path = cl.FrozenCLIP(pretrained=Path("demo"))
    assert spec_of(path)["init_args"]["pretrained"] == "demo"  # plain values


def test_a_class_of_ones_own() -> None:
    mine = MyViT(2.0, seed=4)
    spec = spec_of(mine)
    assert spec["class_path"] == f"{MyViT.__module__}.MyViT"
    assert spec["init_args"] == {"scale": 2.0, "extra": None, "seed": 4}
    again = make_backbone(spec)  # loaded already: nothing is imported for it
    assert isinstance(again, MyViT)
    assert (again.scale, again.seed) == (2.0, 4)
    odd = spec_of(MyViT(extra=object()))
    assert odd["init_args"]["pretrained"] == "given"
    with pytest.raises(UserError, match="was given as an object"):
        make_backbone(odd)

    class Local(MyViT):
        pass

    assert spec_of(Local())["init_args"]["pretrained"] == "given"


def test_a_model_that_was_given() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(UserError, match="was given as an object"):
        make_backbone(spec_of(cl.FrozenViT.from_model(model)))
    module = cl.CLTModule(cl.FrozenViT.from_model(model), cl.TranscoderConfig(n_features=32))
    assert module.hparams["backbone"]["init_args"]["pretrained"] == "given"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("FrozenVit", r"no backbone 'FrozenVit'; there are: .*FrozenViT"),
        ({"class_path": "torch.nn.Linear"}, "is no backbone"),
        ({"class_path": "os.system"}, "is not a class of clt_lightning"),
        ({"class_path": "FrozenCLIP", "pretrained": "demo"}, "pretrained belongs one level deeper"),
        ({"pretraned": "demo"}, "unexpected keyword argument 'pretraned'; it takes name, pretrained"),
        ({"class_path": "FrozenCLIP", "init_args": 3}, "init_args: expected a table"),
        ({"class_path": 7}, "is not the name of a class"),
        (3, "expected a backbone, or class_path and init_args, got 3"),
        (lambda: 3, "expected a backbone, got a int"),
        ({"name": "ViT-B32", "pretrained": None}, r"^model\.backbone\.name: open_clip has no architecture"),
    ],
)
def test_what_is_none(given: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_backbone(given)


def test_what_makes_another_backbone() -> None:
    arguments = {"name": "n", "pretrained": "/a/w.pt", "precision": "fp32", "seed": 0}
    a: dict[str, Any] = {"class_path": "x.FrozenViT", "init_args": arguments}
    moved = {"class_path": "y.FrozenViT", "init_args": a["init_args"] | {"pretrained": "/b/w.pt", "precision": "bf16"}}
    assert differences(a, moved | {"init_args": moved["init_args"] | {"seed": 3}}) == {}
    assert differences(a, {**a, "init_args": a["init_args"] | {"name": "m"}}) == {"init_args.name": ("n", "m")}
    assert "class_path" in differences(a, {**a, "class_path": "x.FrozenCLIP"})
    random = {**a, "init_args": a["init_args"] | {"pretrained": None}}
    assert differences(random, {**random, "init_args": random["init_args"] | {"seed": 1}}) == {"init_args.seed": (0, 1)}


def test_the_heads_outputs_are_refused_where_there_are_none() -> None:
    vit = MyViT()
    for block in vit.blocks:
        block.attn.proj = torch.nn.Sequential(block.attn.proj)  # type: ignore[union-attr,arg-type]
    with pytest.raises(UserError, match="attn_z cannot be told apart: take attn_out"):
        vit.read(torch.zeros(1, 3, 32, 32), "attn_z")
