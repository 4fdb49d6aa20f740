"""Up to a hub and down again: what is uploaded, what the card says, and how it is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import errors

from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import BatchTopK, CrossLayerTranscoder
from tests.hub import Hub, serving
from tests.transcoder.conftest import MakeCLT

CLIP = {"name": "ViT-B-32-quickgelu", "pretrained": "openai", "weights_sha256": "ab" * 32, "precision": "fp32"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub of our own; uploads, which need the network, are copied into its folders."""
    with serving(monkeypatch, tmp_path / "cache") as served:
        calls: list[tuple[str, Any]] = []

        class Api:
            def __init__(self, token: Any = None) -> None:
                calls.append(("token", token))

            def create_repo(self, name: str, private: Any = None, exist_ok: bool = False) -> str:
                calls.append(("create", (name, private, exist_ok)))
                served.repositories.setdefault(name, tmp_path / "repositories" / name)
                return f"{served.address}/{name}"

            def create_branch(self, name: str, branch: str, exist_ok: bool) -> None:
                calls.append(("branch", (name, branch, exist_ok)))

            def upload_folder(
                self, repo_id: str, folder_path: Path, path_in_repo: Any, revision: Any, commit_message: str
            ) -> None:
                calls.append(("upload", (repo_id, path_in_repo, revision, commit_message)))
                shutil.copytree(folder_path, served.repositories[repo_id] / (path_in_repo or ""), dirs_exist_ok=True)

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        served.calls = calls  # type: ignore[attr-defined]
        yield served


def trained(make_clt: MakeCLT, **options: Any) -> CrossLayerTranscoder:
    clt = make_clt(activation=BatchTopK(5), dtype=torch.float32, **options)
    clt(torch.randn(3, 40, 8))
    return clt.eval()


def same(a: CrossLayerTranscoder, b: CrossLayerTranscoder) -> bool:
    x = torch.randn(3, 30, 8, generator=torch.Generator().manual_seed(5))
    return torch.equal(a.encode(x).dense(), b.encode(x).dense())


def test_up_and_down_again(hub: Hub, make_clt: MakeCLT) -> None:
    first, second = trained(make_clt), trained(make_clt, seed=7)
    url = first.push_to_hub("me/clts", metadata={"clip": CLIP})
    assert url == f"{hub.address}/me/clts/tree/main"
    url = second.push_to_hub("me/clts/wide", subfolder="k5", metadata={"clip": CLIP}, private=True, token="t")
    assert url == f"{hub.address}/me/clts/tree/main/wide/k5"
    calls = hub.calls  # type: ignore[attr-defined]
    assert ("create", ("me/clts", True, True)) in calls
    assert [detail[:3] for kind, detail in calls if kind == "upload"] == [
        ("me/clts", None, None),
        ("me/clts", "wide/k5", None),
    ]
    assert same(CrossLayerTranscoder.from_pretrained("me/clts"), first)
    assert same(CrossLayerTranscoder.from_pretrained("me/clts/wide/k5"), second)
    assert same(CrossLayerTranscoder.from_pretrained("me/clts", subfolder="wide/k5"), second)
    assert same(CrossLayerTranscoder.from_pretrained("me/clts/wide", subfolder="k5", revision="v1"), second)
    assert not same(first, second)
    with pytest.raises(UserError, match=r"holds no config\.json in narrow"):
        CrossLayerTranscoder.from_pretrained("me/clts/narrow")
    with pytest.raises(UserError, match="subfolder: of use for a Hugging Face repository alone"):
        CrossLayerTranscoder.from_pretrained(hub.repositories["me/clts"], subfolder="wide")


def test_a_path_that_does_not_exist_asks_no_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/quickstart/version_0/transcoder", "./me/clts", "/me/clts", "clts", "me//clts"):
        with pytest.raises(UserError, match="no such folder"):
            CrossLayerTranscoder.from_pretrained(name)
    assert not hub.requests


def test_a_branch_is_made_and_named(hub: Hub, make_clt: MakeCLT) -> None:
    url = trained(make_clt).push_to_hub("me/clts", revision="v1", commit_message="first")
    assert url.endswith("/me/clts/tree/v1")
    calls = hub.calls  # type: ignore[attr-defined]
    assert ("branch", ("me/clts", "v1", True)) in calls
    assert ("upload", ("me/clts", None, "v1", "first")) in calls
    assert 'from_pretrained("me/clts", revision="v1")' in (hub.repositories["me/clts"] / "README.md").read_text()


@pytest.mark.parametrize("name", ["clts", "/me/clts", "me/", ""])
def test_a_name_that_cannot_be(hub: Hub, make_clt: MakeCLT, name: str) -> None:
    with pytest.raises(UserError, match="is no name of a repository"):
        trained(make_clt).push_to_hub(name)


def test_no_leave_to_write_is_one_message(hub: Hub, make_clt: MakeCLT, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise errors.LocalTokenNotFoundError("no token")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match=r"me/clts: could not be written .*hf auth login"):
        trained(make_clt).push_to_hub("me/clts")


# -- the card ----------------------------------------------------------------------------------------------------------


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.02}


def results() -> dict[str, Any]:
    arms = [
        {
            "kind": "original",
            "first": None,
            "last": None,
            "tokens": None,
            "top1": interval(0.6165),
            "drop": interval(0),
        },
        {"kind": "replaced", "first": 0, "last": 2, "tokens": "all", "top1": interval(0.601), "drop": interval(0.0155)},
        {"kind": "mean_ablated", "first": 0, "last": 2, "tokens": "all", "top1": interval(0.1), "drop": interval(0.5)},
    ]
    evaluation = {
        "images": 5000,
        "token_sets": ["all"],
        "reconstruction": {"fvu": {"all": {"mean": 0.0424}}, "l0": {"all": {"mean": 11.84}}, "dead": {"all": {}}},
        "shares": {"features": {"all": {"mean": 1.0}}, "logit": None},
        "zero_shot": {"arms": arms},
    }
    data = {"description": {"set": "cifar100", "splits": {"train": {"samples": 47500}}}}
    run = {
        "seed": 3,
        "step": 60000,
        "clip": CLIP,
        "data": data,
        "versions": {"torch": "2.14.1", "open_clip_torch": None},
    }
    return {"run": run, "evaluation": {"test": evaluation}}


def test_the_card_says_what_was_measured(hub: Hub, make_clt: MakeCLT, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(json.dumps(results()))
    clt = trained(make_clt, skip=True)
    clt.save_pretrained(tmp_path / "run" / "transcoder", {"clip": CLIP, "step": 60000})
    clt.push_to_hub("me/clts/skip", results=tmp_path / "run", licence="apache-2.0")
    folder = hub.repositories["me/clts"] / "skip"
    assert json.loads((folder / "config.json").read_text())["metadata"]["step"] == 60000
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["library_name"] == "clt-lightning"
    assert about["license"] == "apache-2.0"
    assert "cross-layer-transcoder" in about["tags"]
    for line in (
        "| size | 3 layers x 20 features of width 8,",
        "| activation | BatchTopK (k 5, momentum 0.95",
        "| linear skip | yes: it carries a part of the output that no feature names |",
        "| backbone | ViT-B-32-quickgelu (openai), frozen, SHA-256 of its weights `abababababababab…` |",
        "| trained on | cifar100, 47,500 images |",
        "| steps | 60,000, seed 3 |",
        "| made with | torch 2.14.1 |",
        "| test split, 5,000 images; 95 % intervals over images | |",
        "| FVU, mean over layers, all tokens | 0.0424 |",
        "| L0, all tokens | 11.8 |",
        "| features that never fired, all tokens | not measured |",
        "| features' share of the centred reconstruction, all tokens | 100.0 % |",
        "| zero-shot top-1, original | 61.65 % (60.65 to 63.65) |",
        "| points lost, MLPs 0-2 replaced at all tokens | 1.55 (0.55 to 3.55) |",
        'from_pretrained("me/clts/skip")',
        'cl.FrozenCLIP("ViT-B-32-quickgelu", pretrained="openai")',
    ):
        assert line in body, line
    assert "mean_ablated" not in body


def test_a_card_without_results_says_so(hub: Hub, make_clt: MakeCLT) -> None:
    trained(make_clt).push_to_hub("me/clts")
    text = (hub.repositories["me/clts"] / "README.md").read_text()
    assert "Nothing was recorded" in text
    assert "| licence | not stated by who uploaded it |" in text
    assert "license:" not in text.split("---\n")[1]
    with pytest.raises(UserError, match="there is no"):
        trained(make_clt).push_to_hub("me/clts", results="nowhere")


def test_the_command_uploads(hub: Hub, make_clt: MakeCLT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clt = trained(make_clt)
    clt.save_pretrained(tmp_path / "ours", {"clip": CLIP})
    main(["export", "--transcoder", str(tmp_path / "ours"), "--push", "me/clts", "--license", "mit"])
    assert f"uploaded: {hub.address}/me/clts/tree/main" in capsys.readouterr().out
    assert same(CrossLayerTranscoder.from_pretrained("me/clts"), clt)
    assert "license: mit" in (hub.repositories["me/clts"] / "README.md").read_text()
    with pytest.raises(SystemExit) as stop:
        main(["export", "--transcoder", str(tmp_path / "ours")])
    assert stop.value.code == 2
    assert "nothing to do" in capsys.readouterr().err
