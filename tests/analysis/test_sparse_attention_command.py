"""`attention` end to end on the demo, and the heads that units span where the answer is known."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

from clt_lightning.analysis import open_run
from clt_lightning.analysis.attention_heads import spanned_heads
from clt_lightning.analysis.attention_units import AttentionMeans
from clt_lightning.analysis.results import load_evaluation
from clt_lightning.analysis.sparse_attention import ARMS, measure
from clt_lightning.analysis.suite import Subject, Suite
from clt_lightning.analysis.tags import load_metrics
from clt_lightning.backbone.attention_parts import attention_pattern
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.vit import FrozenViT
from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import AbsTopK, CrossLayerTranscoder
from clt_lightning.transcoder.attention import SparseAttention
from tests.backbone.models import ROWS, make
from tests.cli.small import CONFIG, write

ROW = {row.what: row for row in ROWS}


UNITS = {"n_features": 48, "activation": {"class_path": "TopK", "init_args": {"k": 6}}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `runs/small` lies, trained with units beside the transcoder, and `told.txt`, what was said."""
    folder = tmp_path_factory.mktemp("trained")
    config = write(folder, model=CONFIG["model"] | {"attention": UNITS})
    with (
        pytest.MonkeyPatch.context() as patch,
        (folder / "told.txt").open("w") as told,
        contextlib.redirect_stdout(told),
    ):
        patch.chdir(folder)
        patch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it; put back afterwards
        main(["fit", "--config", str(config), "--runs_dir=runs", "--data.init_args.num_workers=0"])
    return folder


def test_train_measure_and_graph(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    words = ["attention", "--run", "runs/small", "--units", "units", "--output", "found.json"]
    main([*words, "--train", "3", "--k", "6", "--n_features", "48"])
    text = capsys.readouterr().out
    assert "wrote units" in text
    for arm in ("original", "MLPs", "attention", "MLPs and attention", "attention at its mean"):
        assert f"\n{arm} " in text
    first = json.loads(Path("found.json").read_text())
    assert first["images"] == 8
    assert len(first["fvu"]) == len(first["l0"]) == len(first["spans"]) == 4
    assert all(0 < value < 2 for value in first["fvu"])
    assert all(0 < value <= 6 for value in first["l0"])
    assert first["lost"]["original"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    for arm, lost in first["lost"].items():
        assert lost["value"] == pytest.approx(first["top1"]["original"]["value"] - first["top1"][arm]["value"])
    main(words)  # from the folder: the same numbers
    assert json.loads(Path("found.json").read_text()) == first
    key = next(iter(open_run("runs/small").batches("test")))["key"][0]
    graph = ["graph", "--run", "runs/small", "--image", key, "--target", "square - star", "--attention", "units"]
    main([*graph, "--output", "graph.json"])
    kinds = {node["feature_type"] for node in json.loads(Path("graph.json").read_text())["nodes"]}
    assert any("attention" in kind for kind in kinds), kinds
    for more, message in (
        (["--train", "3"], "is there already"),
        (["--d_qk", "4"], "give --train STEPS too"),
        (["--images", "0"], "--images must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            main([*words, *more])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["open_clip's own ViT", "DINOv2 with registers"])
def test_units_that_are_singular_vectors_of_one_head_have_shares_that_sum(name: str) -> None:
    """Against the covariances computed densely, head by head."""
    vit = FrozenViT.from_model(make(ROW[name]).double())
    sparse = SparseAttention(3, 32, 16, 2, AbsTopK(5), seed=0).double()
    images = torch.randn(5, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = spanned_heads(vit, sparse, images.split(2))
    reads = vit.read(images, ("attn_in", "attn_z"))
    for layer in range(3):
        parts, scale = vit.attention_parts(layer), vit.family.branch_scale(layer, 1)
        x = reads["attn_in"][layer].unflatten(0, (5, -1))
        codes = sparse.encode(layer, x, attention_pattern(parts, x)).dense()[0].detach()
        z = reads["attn_z"][layer].unflatten(1, (2, -1))
        rows = []
        for head in range(2):
            out = z[:, head] @ parts.out.weight.unflatten(1, (2, -1))[:, head].T
            out = out if scale is None else out * scale
            along = out @ sparse.W_dec[layer].detach().T
            rows.append(((along - along.mean(0)) * codes).sum(0))
        dense = torch.stack(rows, 1).clamp(min=0)
        dense = dense / dense.sum(1, keepdim=True).clamp(min=1e-300)
        torch.testing.assert_close(found.shares[layer], dense, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.own[layer], dense[torch.arange(16), torch.arange(16) // 8])
        alive = dense.sum(1) > 0
        assert bool(((found.effective[layer][alive] >= 1 - 1e-9) & (found.effective[layer][alive] <= 2 + 1e-9)).all())
    assert found.numbers()[0]["units"] == int((found.effective[0] > 0).sum())


def test_a_norm_behind_the_heads_is_refused() -> None:
    vit = FrozenViT.from_model(make(ROW["EVA's post-norm blocks"]))
    with pytest.raises(UserError, match="is no sum over heads"):
        spanned_heads(vit, SparseAttention(3, 32, 16, 2), [torch.randn(2, 3, 32, 32)])


def test_a_run_with_units_is_evaluated_and_explained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One config: fit, validate, test; its numbers are those of `measure` and of a forward by hand."""
    monkeypatch.chdir(trained)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    told = (trained / "told.txt").read_text()
    assert "every attention and all layers replaced" in told
    evaluated = ["--evaluate.population.images=16", "--evaluate.effects.enabled=false", "--evaluate.bootstrap=1000"]
    main(["test", "--run", "runs/small", "--data.init_args.num_workers=0", *evaluated])
    run = open_run("runs/small")
    assert run.attention is not None
    entry = load_evaluation(run.folder)
    found = entry["attention"]
    again = measure(run, run.attention)
    assert found["fvu"]["all"]["layers"] == pytest.approx(again.fvu.tolist(), rel=1e-5)
    assert found["l0"]["all"]["layers"] == pytest.approx(again.l0.tolist(), rel=1e-5)
    assert again.spans is not None
    assert [row["units"] for row in found["heads"]] == [row["units"] for row in again.spans.numbers()]
    arms = {arm["kind"]: arm for arm in entry["zero_shot"]["arms"] if arm["kind"] in ARMS and arm["tokens"] != "cls"}
    for kind in ("attention", "with_attention", "attention_mean"):
        assert arms[kind]["top1"]["value"] == again.top1[ARMS[kind]].value
        assert arms[kind]["drop"] == pytest.approx(again.lost[ARMS[kind]].to_json())
    batch = next(iter(run.batches("test")))
    with torch.no_grad(), replaced(run.clip, run.transcoder, attention=run.attention):
        both = run.clip.encode_image(batch["image"]) @ run.require_head("")
    right = (both.argmax(1) == batch["label"]).double()
    assert arms["with_attention"]["top1"]["value"] == pytest.approx(float(right.mean()))
    logged = load_metrics(run.folder, "val")
    assert {"attention/fvu/all/layer_03", "attention/dead/cls", "zero_shot/with_attention"} <= set(logged)
    main(["graph", "--run", "runs/small", "--image", batch["key"][0], "--attention", "--output", "graph.json"])
    kinds = {node["feature_type"] for node in json.loads(Path("graph.json").read_text())["nodes"]}
    assert any("attention" in kind for kind in kinds), kinds


def test_means_are_by_position() -> None:
    clip = FrozenCLIP(pretrained="demo")
    clt = CrossLayerTranscoder(4, 96, 16, AbsTopK(2))
    means = AttentionMeans()
    suite = Suite(Subject(clip, clt), [means])
    images = torch.randn(5, 3, 48, 48)
    for part in images.split(2):
        suite.take({"image": part})
    own = clip.read(images, "attn_out")["attn_out"].unflatten(1, (5, -1)).double().mean(1)
    torch.testing.assert_close(means.result(), own, rtol=1e-5, atol=1e-6)
