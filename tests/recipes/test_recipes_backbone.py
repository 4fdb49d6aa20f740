"""CONTRIBUTING's recipes of a backbone and a site: the very blocks, added from outside the package."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import clt_lightning as cl
from clt_lightning.analysis import open_run
from clt_lightning.backbone.make import make_backbone, spec_of
from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from tests.cli.small import CONFIG, write

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: A library that knows nothing of this package
LIBRARY = """
import torch
import torch.nn.functional as F
from torch import nn

class Attend(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
    def forward(self, x):
        n, p, d = x.shape
        q, k, v = self.mix(x).view(n, p, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, p, d))

class Stage(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm_a, self.norm_b, self.attend = nn.LayerNorm(width), nn.LayerNorm(width), Attend(width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
    def forward(self, x):
        x = x + self.attend(self.norm_a(x))
        return x + self.feed(self.norm_b(x))

class Encoder(nn.Module):
    def __init__(self, width=32, side=32, patch=8):
        super().__init__()
        self.width, self.side, self.patch = width, side, patch
        self.cut = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 1 + (side // patch) ** 2, width))
        self.stages = nn.Sequential(*(Stage(width) for _ in range(3)))
        self.last_norm = nn.LayerNorm(width)
    def forward(self, images):
        x = self.cut(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.places
        return self.last_norm(self.stages(x))[:, 0]
"""


def block(first_line: str) -> str:
    """The block of CONTRIBUTING that begins so."""
    found = [text for text in re.findall(r"```\w+\n(.*?)```", TEXT, re.DOTALL) if text.startswith(first_line)]
    assert len(found) == 1, first_line
    return str(found[0])


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The recipe's file as a module that Python finds."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "their_library.py").write_text(LIBRARY)
    (folder / "my_backbone.py").write_text(block("# my_backbone.py"))
    monkeypatch.syspath_prepend(str(folder))
    import importlib

    yield importlib.import_module("my_backbone")
    for name in ("my_backbone", "their_library"):
        sys.modules.pop(name, None)


def test_the_recipes_are_short() -> None:
    assert len(block("# my_backbone.py").splitlines()) <= 120
    assert len(block("# heads.yaml").splitlines()) <= 10


def test_a_family_from_outside(outside: ModuleType) -> None:
    torch.manual_seed(1)
    model: nn.Module = outside.Encoder(48).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        own = model(images)
    with pytest.raises(UserError, match=r"a family of your own"):
        cl.FrozenViT.from_model(model)
    vit = cl.FrozenViT.from_model(model, family=outside.EncoderFamily)
    assert torch.equal(vit.encode_image(images, normalize=False), own)
    seen: dict[str, torch.Tensor] = {}
    stage: Any = model.stages[1]  # type: ignore[index]
    stage.attend.out.register_forward_pre_hook(lambda m, a: seen.__setitem__("attn_z", a[0]))
    stage.feed.register_forward_hook(lambda m, a, out: seen.__setitem__("mlp_out", out))
    with torch.no_grad():
        model(images)
    for site, tensor in dict(seen).items():
        assert torch.equal(vit.read(images, site, [1])[site][0], tensor.flatten(0, 1)), site
        with vit.override(site, lambda layer, x, compute: compute()):
            assert torch.equal(vit.encode_image(images, normalize=False), own), site

    class Wrong(outside.EncoderFamily):  # type: ignore[name-defined,misc]
        def mlp(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = 2 * super().mlp(block, x)
            return result

    with pytest.raises(UserError, match="computes something else"):
        cl.FrozenViT.from_model(model, family=Wrong)


def test_a_backbone_by_class_path(
    outside: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """fit, the saved config, the checkpoint, test with the user's word, plan, and Python."""
    monkeypatch.chdir(tmp_path)
    chosen = {"class_path": "my_backbone.FrozenEncoder", "init_args": {"width": 48, "seed": 3}}
    config = write(tmp_path, model=CONFIG["model"] | {"backbone": chosen})
    main(["plan", "--config", str(config), "--gpus", "1"])
    assert "3 layers of width 48" in capsys.readouterr().out
    main(["fit", "--config", str(config)])
    run = tmp_path / "runs" / "small" / "version_0"
    saved = yaml.safe_load((run / "config.yaml").read_text())["model"]["backbone"]
    assert saved["class_path"] == "my_backbone.FrozenEncoder"
    assert saved["init_args"] == {"width": 48, "pretrained": None, "precision": "fp32", "seed": 3}
    hyper = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]["backbone"]
    assert hyper == saved
    module = cl.CLTModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt")  # the class is loaded already
    assert spec_of(module.clip) == saved
    assert type(open_run(run).clip).__name__ == "FrozenEncoder"
    for name in ("my_backbone", "their_library"):
        sys.modules.pop(name)
    del module
    made = make_backbone({"class_path": "my_backbone.FrozenEncoder"}, trusted=True)
    assert made.d_model == 32


def test_it_needs_a_word_where_the_config_came_with_the_run(
    outside: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = {"class_path": "my_backbone.FrozenEncoder", "init_args": {"width": 32}}
    main(["fit", "--config", str(write(tmp_path, model=CONFIG["model"] | {"backbone": chosen}))])
    run = str(tmp_path / "runs" / "small" / "version_0")
    with pytest.raises(SystemExit):
        main(["validate", "--run", run])
    assert "--trust_config" in capsys.readouterr().err
    main(["validate", "--run", run, "--trust_config"])


def test_a_site_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heads.yaml").write_text(block("# heads.yaml"))
    main(["fit", "--config", str(write(tmp_path)), "--config", "heads.yaml"])
    run = open_run(tmp_path / "runs" / "small" / "version_0")
    assert (run.transcoder.sites.read, run.transcoder.sites.layers) == ("attn_z", [2, 3])
