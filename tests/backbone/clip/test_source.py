"""Names, tags and GELU kinds are checked before anything is built or fetched: all of this runs offline."""

from __future__ import annotations

import json
import logging
import urllib.error
from pathlib import Path
from typing import Any

import open_clip
import pytest

from clt_lightning.backbone.clip import FrozenCLIP, build
from clt_lightning.backbone.clip.source import find_source
from clt_lightning.core.errors import UserError

from .tiny import tiny_config, write_tiny


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing may be built or downloaded before the check")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    monkeypatch.setattr(open_clip, "create_model", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "tag", "advice"),
    [
        ("ViT-B-32", "openai", "'ViT-B-32-quickgelu'"),
        ("ViT-B-16", "openai", "'ViT-B-16-quickgelu'"),
        ("ViT-L-14-336", "openai", "'ViT-L-14-336-quickgelu'"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "'ViT-B-32'"),
        ("ViT-B-32-quickgelu", "laion2b-s34b-b79k", "'ViT-B-32'"),
    ],
)
def test_weights_of_the_other_gelu_are_refused(name: str, tag: str, advice: str) -> None:
    with pytest.raises(UserError, match=f"{tag}.*{name}.*use the name {advice}$"):
        FrozenCLIP(name, tag)


@pytest.mark.parametrize(
    ("name", "tag", "quick"),
    [
        ("ViT-B-32-quickgelu", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-16", "laion2b-s34b-b88k", False),
        ("ViT-B-32-quickgelu", None, True),
    ],
)
def test_weights_that_fit_are_accepted(name: str, tag: str | None, quick: bool) -> None:
    found = find_source(name, tag)
    assert (found.quick_gelu, found.tag) == (quick, tag)


def test_every_tag_of_open_clip_fits_exactly_one_of_the_two_names() -> None:
    checked = 0
    for name, tag in open_clip.list_pretrained():
        quick_name = f"{name}-quickgelu"
        if quick_name not in open_clip.list_models():
            continue
        accepted = []
        for candidate in (name, quick_name):
            try:
                accepted.append(find_source(candidate, tag).quick_gelu)
            except UserError:
                continue
        assert accepted == [bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))], (name, tag)
        checked += 1
    assert checked > 30


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "pretrained", "words"),
    [
        ("ViT-B32", None, "'ViT-B32'; close to it: .*ViT-B-32"),
        ("ViT-B-32-quickgelu", "opena1", "'opena1'.*close to it: openai"),
        ("ViT-B-32", "weights/none.pt", "'weights/none.pt' is neither a pretrained tag of 'ViT-B-32' nor a file"),
        ("RN50-quickgelu", "openai", "ResNet"),
        ("convnext_base", None, "'convnext_base' has the timm tower 'convnext_base' for images, a ConvNeXt"),
        ("swin_base_patch4_window7_224", None, "a SwinTransformer"),
    ],
)
def test_what_does_not_exist_or_cannot_work(name: str, pretrained: str | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        FrozenCLIP(name, pretrained)


def test_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(cfg: dict[str, Any]) -> str:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(UserError, match=r"'openai' of 'ViT-B-32-quickgelu' are not on disk.*no route.*path.*'demo'"):
        FrozenCLIP("ViT-B-32-quickgelu", "openai")


def test_a_full_disk_is_not_called_a_missing_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(cfg: dict[str, Any]) -> str:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:  # what open_clip does with every failure of the hub
            raise FileNotFoundError(f"Failed to download file. Last error: {error}")  # noqa: B904

    monkeypatch.setattr(open_clip, "download_pretrained", full)
    with pytest.raises(UserError, match=r"'openai' of 'ViT-B-32-quickgelu'.*the disk is full"):
        FrozenCLIP("ViT-B-32-quickgelu", "openai")


@pytest.mark.parametrize("inside", [True, False])
def test_a_json_beside_the_weights_is_believed(tmp_path: Path, inside: bool) -> None:
    path = tmp_path / "mine.safetensors"
    path.touch()
    told = {"model_cfg": {"quick_gelu": True}} if inside else {"quick_gelu": True}
    path.with_suffix(".json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"mine\.safetensors.*QuickGELU.*'ViT-B-32-quickgelu'"):
        find_source("ViT-B-32", str(path))
    assert find_source("ViT-B-32-quickgelu", str(path)).checkpoint == path


def test_a_broken_json_beside_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    path.touch()
    path.with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match=r"mine\.json.*not JSON"):
        find_source("ViT-B-32", str(path))


def test_an_architecture_of_ones_own_is_read_from_the_config(tmp_path: Path) -> None:
    path = write_tiny(tmp_path, tiny_config(quick_gelu=True, width=48))
    clip = FrozenCLIP("mine", str(path))
    assert (clip.name, clip.d_model, clip.quick_gelu, clip.n_layers) == ("open_clip_model", 48, True, 3)


def test_the_root_logger_is_left_alone() -> None:
    root = logging.getLogger()
    before, disabled = list(root.handlers), logging.root.manager.disable
    with build._quiet_open_clip():
        logging.info("installs a handler")
    assert root.handlers == before
    assert logging.root.manager.disable == disabled
