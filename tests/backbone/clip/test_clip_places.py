"""Models that lie in a folder or on the Hugging Face Hub, with open_clip's config beside the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.clip.source import find_source
from clt_lightning.core import hub as core_hub
from clt_lightning.core.errors import UserError, within
from clt_lightning.transcoder import CrossLayerTranscoder

from ...hub import COMMIT, Hub, serving
from .tiny import tiny_config, write_tiny

# a text tower that open_clip's own tokenizer can feed
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def snapshot(folder: Path, quick_gelu: bool = False, seed: int = 0, binary: bool = False, **more: Any) -> Path:
    """A folder as repositories of open_clip are: config and weights, no vocabulary of ours."""
    folder.mkdir(parents=True)
    config = tiny_config(quick_gelu) | {"text_cfg": TEXT}
    torch.manual_seed(seed)
    state = open_clip.CLIP(**config).state_dict()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, **more}))
    if binary:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("given", ["folder", "local-dir", "name"])
def test_a_snapshot_folder(tmp_path: Path, given: str, binary: bool) -> None:
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    cfg: dict[str, Any] = {
        "preprocess_cfg": {"mean": mean, "std": std, "interpolation": "bilinear", "resize_mode": "squash"}
    }
    folder = snapshot(tmp_path / "mine", quick_gelu=True, binary=binary, **cfg)
    if given == "name":
        clip = FrozenCLIP(f"local-dir:{folder}")
    else:
        clip = FrozenCLIP(pretrained=str(folder) if given == "folder" else f"local-dir:{folder}")
    expected, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    expected.eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    texts = ["a photo of a cat", "a dog that sits on a roof of a very very very very long house in a town"]
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(images), expected.encode_image(images, normalize=True))
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
        torch.testing.assert_close(clip.encode_text(texts), expected.encode_text(tokens, normalize=True))
    assert clip.quick_gelu
    assert (clip.name, clip.mean, clip.std) == ("mine", tuple(mean), tuple(std))
    assert repr(clip.preprocess) == repr(preprocess)
    assert clip.describe()["pretrained"] == clip.pretrained


def test_a_folder_brings_its_architecture_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = snapshot(tmp_path / "mine")
    with within("model.backbone"):
        assert FrozenCLIP("ViT-B-16", str(folder)).d_model == 32
    assert "brings its own architecture: model.backbone.name='ViT-B-16' is not used" in capsys.readouterr().err


def test_the_preprocessing_beside_a_file_counts_also_for_a_name_of_open_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = snapshot(tmp_path / "mine", preprocess_cfg={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]})
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny", config)
    assert FrozenCLIP("Tiny", str(folder / "open_clip_model.safetensors")).mean == (0.5, 0.5, 0.5)


def test_a_folder_with_weights_alone_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = snapshot(tmp_path / "mine", binary=True)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match="no architecture 'Tiny'"):
        FrozenCLIP("Tiny", str(folder))
    with pytest.raises(UserError, match=r"name: .*holds no open_clip_config\.json"):
        FrozenCLIP(f"local-dir:{folder}")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny", config)
    assert FrozenCLIP("Tiny", str(folder)).d_model == 32


@pytest.mark.parametrize("home", ["~/models/mine", "$MODELS/mine", "local-dir:~/models/mine"])
def test_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    snapshot(tmp_path / "models" / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODELS", str(tmp_path / "models"))
    assert FrozenCLIP(pretrained=home).d_model == 32
    monkeypatch.delenv("MODELS")
    with within("model.backbone"), pytest.raises(UserError, match=r"model\.backbone\.pretrained.*MODELS is not set"):
        FrozenCLIP(pretrained="$MODELS/mine")


def _other(folder: Path, config: dict[str, Any]) -> None:
    (folder / "open_clip_config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))


def _config(folder: Path, text: str) -> None:
    (folder / "open_clip_config.json").write_text(text)


def _model(folder: Path, **change: Any) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    for key, value in change.items():
        part, _, name = key.partition("__")
        (config[part] if not name else config[part][name]).update(value)
    _config(folder, json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "open_clip_model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "open_clip_model.safetensors").write_bytes(b""), "is empty"),
        (lambda f: _other(f, {"model_type": "clip"}), r"model of transformers' \(clip\)"),
        (lambda f: _other(f, {"format": "clt_lightning/1"}), "holds a transcoder, not a backbone"),
        (lambda f: _config(f, "{"), r"open_clip_config\.json, line 1: not JSON"),
        (lambda f: _config(f, "[1]"), "holds no table"),
        (lambda f: _config(f, "{}"), "has no `model_cfg`"),
        (lambda f: _config(f, '{"model_cfg": 3}'), "must have embed_dim, vision_cfg and text_cfg"),
        (lambda f: _config(f, "\xff"), "not JSON"),
        (lambda f: _model(f, model_cfg__vision_cfg={"widht": 3}), r"describes no model that open_clip .*widht"),
        (lambda f: _model(f, model_cfg__vision_cfg={"width": "wide"}), "describes no model that open_clip"),
        (lambda f: _model(f, model_cfg__vision_cfg={"patch_size": 0}), "describes no model that open_clip"),
        (lambda f: _model(f, model_cfg__vision_cfg={"layers": 2}), "it has also visual.transformer.resblocks.2"),
        (lambda f: _model(f, model_cfg__vision_cfg={"timm_model_name": "x"}), "a timm tower"),
        (lambda f: _model(f, preprocess_cfg={"mean": [1]}), "preprocess_cfg.mean must be three numbers"),
        (lambda f: _model(f, preprocess_cfg={"std": [1, 1, 0]}), "preprocess_cfg.std must be positive"),
        (lambda f: _model(f, preprocess_cfg={"interpolation": "none"}), "preprocess_cfg.interpolation must be one of"),
        (lambda f: [shutil.move(p, f / "a.bin") for p in f.glob("*.safetensors")] + [(f / "b.bin").touch()], "several"),
    ],
)
def test_damaged_folders_are_named(tmp_path: Path, damage: Any, words: str) -> None:
    folder = snapshot(tmp_path / "mine", preprocess_cfg={})
    damage(folder)
    with pytest.raises(UserError, match=words) as caught:
        FrozenCLIP(pretrained=str(folder))
    assert "mine" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_places_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder '.*none'"):
        FrozenCLIP(f"local-dir:{tmp_path / 'none'}")
    with pytest.raises(UserError, match=r"is an address: download"):
        FrozenCLIP("ViT-B-32", "https://host/x.pt")
    with pytest.raises(UserError, match=r"hf-hub:laion/CLIP-ViT for a repository of the hub"):
        FrozenCLIP("ViT-B-32", "laion/CLIP-ViT")
    with pytest.raises(UserError, match="name='local-dir:x' brings its own weights: leave pretrained='laion2b"):
        FrozenCLIP("local-dir:x", "laion2b_s34b_b79k")


def test_a_text_tower_that_the_tokenizer_does_not_fit(tmp_path: Path) -> None:
    folder = snapshot(tmp_path / "mine")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = 100
    shutil.rmtree(folder)
    path = write_tiny(tmp_path, config["model_cfg"])
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"has 100 tokens, its tokenizer gives number 49,407"):
        FrozenCLIP("x", str(path)).encode_text(["a cat"])


def test_a_damaged_vocabulary(tmp_path: Path) -> None:
    path = write_tiny(tmp_path, tiny_config())
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    broken: dict[str, Any]
    for broken in ({"words": ["a"], "context_length": 3}, {"wrods": []}, {"words": 3, "context_length": 4}):
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config | {"tokenizer": broken}))
        with pytest.raises(UserError, match=r"the tokenizer of .*open_clip_config\.json"):
            FrozenCLIP("x", str(path)).tokenizer(["a"])


def test_text_towers_of_transformers_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="text tower of the package transformers: pip install transformers"):
        FrozenCLIP("roberta-ViT-B-32", None)
    folder = snapshot(tmp_path / "mine")
    _model(folder, model_cfg__text_cfg={"hf_tokenizer_name": "org/name"})
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match="tokenizer of the package transformers: pip install transformers"):
        FrozenCLIP(pretrained=str(folder)).tokenizer(["a"])


# -- the hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path / "cache") as server:
        server.repositories["org/tiny"] = snapshot(tmp_path / "repo")
        yield server


@pytest.mark.parametrize("as_name", [True, False])
def test_a_repository_of_the_hub(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_name: bool) -> None:
    clip = FrozenCLIP("hf-hub:org/tiny") if as_name else FrozenCLIP("ViT-B-32", pretrained="hf-hub:org/tiny")
    said = capsys.readouterr().err.splitlines()
    weights = (hub.repositories["org/tiny"] / "open_clip_model.safetensors").stat().st_size
    line = next(line for line in said if "open_clip_model.safetensors" in line)
    assert line.startswith(
        f"downloading open_clip_model.safetensors ({weights / 1e6:.1f} MB) of org/tiny from 127.0.0.1"
    )
    assert str(tmp_path / "cache") in line
    local = FrozenCLIP(pretrained=str(hub.repositories["org/tiny"]))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(clip.encode_image(images), local.encode_image(images))
    assert (clip.name, clip.pretrained) == ("org/tiny", "hf-hub:org/tiny")
    # again: from the cache, without a word
    capsys.readouterr()
    hub.requests.clear()
    FrozenCLIP("hf-hub:org/tiny")
    assert not [request for request in hub.requests if request.startswith("GET")]
    assert "downloading" not in capsys.readouterr().err


def test_the_announcement_comes_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(core_hub, "say", lambda text: order.append(f"said {text.split()[1]} {len(hub.requests)}"))
    FrozenCLIP("hf-hub:org/tiny")
    names = [request.rsplit("/", 1)[-1] for request in hub.requests if request.startswith("GET")]
    assert names[-2:] == ["open_clip_config.json", "open_clip_model.safetensors"]
    first = [hub.requests.index(r) for r in hub.requests if r.startswith("GET") and r.endswith(tuple(names[-2:]))]
    said = [int(line.split()[2]) for line in order]
    assert all(a <= b for a, b in zip(said, first, strict=True))


def test_no_weights_are_fetched_where_the_architecture_is_refused(hub: Hub) -> None:
    _model(hub.repositories["org/tiny"], model_cfg__vision_cfg={"timm_model_name": "vit"})
    with pytest.raises(UserError, match="timm tower"):
        FrozenCLIP("hf-hub:org/tiny")
    assert not any("safetensors" in request for request in hub.requests)


def test_binary_weights_and_revisions(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/bin"] = snapshot(tmp_path / "bin", binary=True)
    assert FrozenCLIP("hf-hub:org/bin@v1").d_model == 32
    assert FrozenCLIP(f"hf-hub:org/bin@{COMMIT}").d_model == 32
    hub.requests.clear()
    assert FrozenCLIP(f"hf-hub:org/bin@{COMMIT}").d_model == 32
    assert not [request for request in hub.requests if request.startswith("GET")]
    with pytest.raises(UserError, match="org/bin@v9: the repository has no revision 'v9'"):
        FrozenCLIP("hf-hub:org/bin@v9")


def test_a_hub_that_cannot_be_reached_and_a_full_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(monkeypatch, tmp_path / "cache") as server:
        server.repositories["org/tiny"] = snapshot(tmp_path / "repo", binary=True)
        FrozenCLIP("hf-hub:org/tiny")
    capsys.readouterr()
    assert FrozenCLIP("hf-hub:org/tiny").d_model == 32  # at once: no retries
    assert "Retrying" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf-hub:org/none", "the hub has no such repository, or none that you may read"),
        ("hf-hub:org/secret", "wants your consent"),
        ("hf-hub:org/other", r"holds no open_clip_config\.json"),
        ("hf-hub:org/empty", "holds none of the weights"),
        ("hf-hub:", "names no repository"),
        ("hf-hub:a//b", "is no name of a repository"),
    ],
)
def test_repositories_that_give_nothing(hub: Hub, tmp_path: Path, name: str, words: str) -> None:
    hub.repositories["org/secret"] = hub.repositories["org/tiny"]
    hub.gated.add("org/secret")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "clip"}')
    hub.repositories["org/other"] = tmp_path / "other"
    hub.repositories["org/empty"] = snapshot(tmp_path / "empty")
    (tmp_path / "empty" / "open_clip_model.safetensors").unlink()
    with pytest.raises(UserError, match=words):
        FrozenCLIP(name)


def test_offline_without_the_files(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"open_clip_config\.json is not in the hub's cache\. Connect once"):
        FrozenCLIP("hf-hub:org/tiny")


def test_the_hubs_cache_given_as_a_folder(hub: Hub, tmp_path: Path) -> None:
    FrozenCLIP("hf-hub:org/tiny")
    root = tmp_path / "cache" / "models--org--tiny"
    with pytest.raises(UserError, match=r"cache of org/tiny: write hf-hub:org/tiny"):
        FrozenCLIP(pretrained=str(root))
    assert FrozenCLIP(pretrained=str(root / "snapshots" / COMMIT)).name == "org/tiny"


def test_a_tag_is_announced_before_its_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = tmp_path / "tagged"
    repo.mkdir()
    (repo / "open_clip_model.safetensors").write_bytes(bytes(2_500_000))
    hub.repositories["timm/vit_base_patch32_clip_224.openai"] = repo
    monkeypatch.setattr(open_clip, "download_pretrained", lambda cfg: (_ for _ in ()).throw(TimeoutError("cut")))
    with pytest.raises(UserError, match="could not be downloaded"):
        FrozenCLIP("ViT-B-32-quickgelu", "openai")
    said = capsys.readouterr().err
    assert "downloading open_clip_model.safetensors (2.5 MB) of timm/vit_base_patch32_clip_224.openai" in said


def test_a_transcoder_of_the_hub(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clt = CrossLayerTranscoder(2, 8, 16, seed=0)
    hub.repositories["me/clt"] = clt.save_pretrained(tmp_path / "clt")
    loaded = CrossLayerTranscoder.from_pretrained("me/clt", revision="v1")
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), clt.state_dict().values()))
    assert "downloading model.safetensors" in capsys.readouterr().err
    weights = tmp_path / "clt" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(UserError, match="has not the SHA-256 sum"):
        CrossLayerTranscoder.from_pretrained("me/clt", cache_dir=tmp_path / "second")
    weights.unlink()
    with pytest.raises(UserError, match=r"hub's repository of this name holds no model\.safetensors"):
        CrossLayerTranscoder.from_pretrained("me/clt", cache_dir=tmp_path / "third")
    with pytest.raises(UserError, match="me/none: no such folder, and the hub did not give it"):
        CrossLayerTranscoder.from_pretrained("me/none")


def test_find_source_names_the_place(tmp_path: Path) -> None:
    folder = snapshot(tmp_path / "mine")
    found = find_source("ViT-B-32", str(folder))
    assert found.checkpoint == folder / "open_clip_model.safetensors"
    assert (found.is_own, found.tag) == (True, None)
