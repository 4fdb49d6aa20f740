"""The bench on made data with known answers, its untrained transcoder, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.analysis.bench import BenchOptions, bench, untrained
from clt_lightning.analysis.bench.estimate import Estimate
from clt_lightning.analysis.bench.features import LEAST_IMAGES, Coherence, TopImages
from clt_lightning.analysis.bench.readouts import read_out
from clt_lightning.analysis.probes import Rows
from clt_lightning.analysis.spatial import moran
from clt_lightning.cli.main import main
from clt_lightning.cli.second_backbone import _described, second_backbone
from clt_lightning.core.errors import UserError
from tests.analysis.circuits.circuit_world import clip_of, clt_of
from tests.cli.small import CONFIG, write

SIDE = 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_coherence_of_known_maps() -> None:
    """A block, a chessboard, noise, and one that fires at too few patches."""
    n = 60
    block = torch.zeros(n, SIDE, SIDE)
    block[:, :3, :4] = 1
    board = ((torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2).float().expand(n, -1, -1)
    noise = torch.rand(n, SIDE, SIDE, generator=generator(7))
    few = torch.zeros(n, SIDE, SIDE)
    few[:, 0, :4] = 1
    maps = torch.stack([block, board, torch.where(noise > 0.5, noise, 0.0), few], -1)
    whole, parts = (Coherence(4, (SIDE, SIDE), 0) for _ in range(2))
    whole.add(maps.flatten(1, 2))
    for some in maps.flatten(1, 2).split(7):
        parts.add(some)
    found = whole.columns()
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found[:, 0], moran(maps).mean(0)[:3].numpy(), atol=1e-9)
    np.testing.assert_allclose(found[:, 1], -1 / (SIDE**2 - 1), atol=0.03)
    assert found[0, 0] > 0.5
    assert found[1, 0] < found[1, 1]
    assert abs(found[2, 0] - found[2, 1]) < 0.04
    np.testing.assert_allclose(parts.columns()[:, 0], found[:, 0], atol=1e-9)
    nothing = Coherence(1, (SIDE, SIDE), 0)
    nothing.add(maps[..., 3:].flatten(1, 2))
    assert nothing.columns().shape == (0, 2)


def test_monosemanticity_by_hand() -> None:
    """Of all pairs of top images, and random ones at the same weights; the order of batches does not matter."""
    n, k = 40, 8
    embeddings = torch.nn.functional.normalize(torch.randn(n, 6, generator=generator(1)), dim=1)
    embeddings[:12] = embeddings[0]  # feature 0 fires on these alone
    codes = torch.zeros(n, 5, 4)
    codes[:12, 2, 0] = 1 + torch.rand(12, generator=generator(2))
    codes[:, :, 1] = torch.randn(n, 5, generator=generator(3))  # magnitudes count
    codes[: LEAST_IMAGES - 1, 0, 2] = 1
    codes[:6, 1, 3] = torch.arange(6) + 1.0  # fewer than k
    top = TopImages(4, k)
    for some in codes.split(9):
        top.add(some)
    found = top.columns(embeddings, 0)
    assert found.shape == (3, 2)  # feature 2 fires on too few
    assert found[0, 0] == pytest.approx(1, abs=1e-6)
    assert abs(found[0, 1]) < 0.6

    def by_hand(feature: int) -> float:
        size = codes[:, :, feature].abs().amax(1)
        best = size.argsort(descending=True)[:k]
        best = best[size[best] > 0]
        above = below = 0.0
        for a in best.tolist():
            for b in best.tolist():
                if a != b:
                    weight = float(size[a] * size[b])
                    above += weight * float(embeddings[a] @ embeddings[b])
                    below += weight
        return above / below

    assert found[1, 0] == pytest.approx(by_hand(1), abs=1e-5)
    assert found[2, 0] == pytest.approx(by_hand(3), abs=1e-5)
    random = [top.columns(embeddings, seed)[:, 1] for seed in range(200)]
    pairs = (embeddings.sum(0).square().sum() - n) / (n * (n - 1))
    np.testing.assert_allclose(np.mean(random, 0), float(pairs), atol=0.02)
    small = TopImages(4, k)
    small.add(codes[:6])
    assert small.columns(embeddings[:6], 0).shape == (3, 2)  # fewer images than k


def test_differences_and_means_keep_the_draws() -> None:
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(300, 1)) + rng.normal(size=(300, 2)) * 0.05 + [0.5, 0.0]
    a, b = Estimate.of_columns(columns, 500, 0)
    assert (a - b).value == pytest.approx(0.5, abs=0.02)
    paired = (a - b).interval
    assert paired.high - paired.low < 0.2 * (a.interval.high - a.interval.low)
    nothing = Estimate.of_columns(np.empty((0, 2)), 500, 0)[0]
    assert np.isnan(nothing.value)
    mean = Estimate.mean([a, nothing, b])
    assert mean.value == pytest.approx((a.value + b.value) / 2)
    assert mean.interval.low < mean.value < mean.interval.high
    assert np.isnan(Estimate.mean([nothing]).interval.low)


def pictures(n: int, seed: int, labels: bool = True) -> Callable[[], Iterator[dict[str, Any]]]:
    """Three flat colours with noise, in batches of 8."""
    images = 0.5 * torch.randn(n, 3, 24, 24, generator=generator(seed))
    label = torch.arange(n) % 3
    images[torch.arange(n), label] += 2

    def batches() -> Iterator[dict[str, Any]]:
        for rows in torch.arange(n).split(8):
            yield {"image": images[rows]} | ({"label": label[rows]} if labels else {})

    return batches


@pytest.mark.parametrize(
    ("activation", "topology"),
    [("BatchTopK", "cross_layer"), ("ReLU", "per_layer"), ("JumpReLU", "sae"), ("AbsTopK", "cross_layer")],
)
def test_an_untrained_transcoder_is_as_sparse(activation: str, topology: str) -> None:
    clip, clt = clip_of("plain"), clt_of(activation, topology)
    sites = str(clt.sites.read), str(clt.sites.write)
    null = untrained(clip, clt, pictures(80, 0)(), seed=5)
    images = torch.cat([batch["image"] for batch in pictures(80, 1)()])
    x = clip.capture(images, sites=sites).x
    own, other = (each(x).codes.l0().double().mean(1) for each in (clt, null))
    assert not null.training
    torch.testing.assert_close(other, own, rtol=0.08, atol=0.05)
    for layer, (made, trained) in enumerate(zip(null.W_dec, clt.W_dec)):
        torch.testing.assert_close(made.norm(dim=-1), trained.norm(dim=-1))
        cosine = torch.nn.functional.cosine_similarity(made, trained, dim=-1)
        assert float(cosine.detach().abs().mean()) < 0.3
        if topology == "sae":
            direction = torch.nn.functional.normalize(null.W_enc[layer], dim=1)
            torch.testing.assert_close(torch.nn.functional.normalize(made[:, 0], dim=1), direction)
    again = untrained(clip, clt, pictures(80, 0)(), seed=5)
    assert all(torch.equal(a, b) for a, b in zip(null.state_dict().values(), again.state_dict().values()))
    assert not torch.equal(untrained(clip, clt, pictures(80, 0)(), seed=6).W_enc[0], null.W_enc[0])
    with pytest.raises(UserError, match="there are none"):
        untrained(clip, clt, iter(()))


def test_read_outs_of_planted_codes() -> None:
    """Features 4, 9 and 11 tell the class; the reconstruction has lost it."""

    def split(n: int, seed: int) -> dict[str, Rows]:
        y = torch.arange(n) % 3
        codes = torch.rand(n, 14, generator=generator(seed))
        codes[:, 13] = 0  # dead: never drawn
        for c, column in enumerate((4, 9, 11)):
            codes[:, column] = (y == c) * 2.0 + 0.1 * codes[:, column]
        return {
            "features": Rows(codes[:, [4, 9, 11]] * 3 + 1, y),
            "reconstruction": Rows(torch.randn(n, 5, generator=generator(seed + 50)), y),
            "codes": Rows(codes, y),
        }

    splits = {"train": split(150, 0), "val": split(60, 1), "test": split(90, 2)}
    found = read_out(splits, 3, (1, 3, 13, 14), 0)
    assert found.whole["features"].mean() == 1
    assert found.whole["codes"].mean() > 0.97
    assert found.whole["reconstruction"].mean() < 0.55
    one, three, all_of_them = found.sparse  # 14 are more than there are alive
    assert (one.k, three.k, all_of_them.k) == (1, 3, 13)
    assert sorted(three.columns) == [4, 9, 11]
    assert three.right[:, 0].mean() == 1
    assert three.right[:, 1].mean() < 0.9
    assert 0.5 < one.right[:, 0].mean() < 0.8  # one class of three is told apart
    np.testing.assert_array_equal(all_of_them.right[:, 0].mean(), all_of_them.right[:, 1].mean())


def exact() -> cl.CrossLayerTranscoder:
    """An autoencoder of the tiny CLIP's last stream that rebuilds it exactly: each dimension's two signs."""
    width = 32
    sae = cl.CrossLayerTranscoder(
        1, width, 2 * width, cl.ReLU(), "sae", sites=cl.Sites("resid_post", layers=[2]), seed=0
    )
    eye = torch.eye(width)
    with torch.no_grad():
        sae.W_enc[0].copy_(torch.cat([eye, -eye]))
        sae.W_dec[0].copy_(torch.cat([eye, -eye])[:, None])
        sae.normalized.fill_(True)
    return sae.eval()


def embed(images: Tensor) -> Tensor:
    """The mean colour: as good as the class."""
    return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)


@pytest.fixture(scope="module")
def splits() -> dict[str, Any]:
    return {"train": pictures(60, 0), "val": pictures(32, 1), "test": pictures(48, 2)}


def test_an_exact_autoencoder_keeps_what_a_probe_reads(splits: dict[str, Any]) -> None:
    options = BenchOptions(ks=(1, 3), top=6, draws=40, seed=3)
    found = bench(clip_of("plain"), exact(), splits, 3, options, embed=embed, index="colours")
    assert found.images == {"train": 60, "val": 32, "test": 48}
    assert found.layers == ["block 2"]
    assert found.l0["untrained"] == pytest.approx(found.l0["trained"], rel=0.05)
    probe = found.measures["reconstruction"]
    assert probe.trained[0].value.value > 0.8
    assert probe.trained[0].difference.value == pytest.approx(0, abs=0.02)
    assert probe.untrained[0].control.value == probe.trained[0].control.value  # the site is the same
    same = found.measures["monosemanticity"].trained[0]
    assert same.difference.value > 0
    told = found.to_json()
    json.dumps(told, allow_nan=False)
    assert set(told["measures"]) <= {
        *("coherence", "monosemanticity", "reconstruction", "codes", "sparse_1", "sparse_3"),
    }
    assert len(told["measures"]["sparse_3"]["layers"][0]["columns"]) == 3
    assert told["measures"]["sparse_3"]["mean"]["trained"]["n"] == 48
    again = bench(clip_of("plain"), exact(), splits, 3, options, embed=embed, index="colours")
    assert again.to_json() == told


def test_what_is_left_out_is_said(splits: dict[str, Any]) -> None:
    clip, options = clip_of("plain"), BenchOptions(ks=(1,), draws=20)
    bare = {name: pictures(24, 0, labels=False) for name in splits}

    def categories() -> Iterator[dict[str, Any]]:
        for batch in pictures(24, 0)():
            yield batch | {"multi_hot": torch.zeros(len(batch["image"]), 3)}

    unlabelled = splits | {"val": lambda: ({**b, "label": b["label"] * 0 - 1} for b in pictures(24, 0)())}
    one = splits | {"train": lambda: ({**b, "label": b["label"] * 0} for b in pictures(24, 0)())}
    for given, n, reason in (
        (bare, 3, "the images have no labels"),
        (bare, 0, "two classes or more, and the data have 0"),
        (dict.fromkeys(splits, categories), 3, "several categories"),
        (unlabelled, 3, "split 'val' has no labelled image"),
        (one, 3, "of one class"),
    ):
        found = bench(clip, exact(), given, n, options)
        assert any(reason in note for note in found.notes), found.notes
        assert "monosemanticity" in found.measures
        assert not {"reconstruction", "sparse_1"} & set(found.measures)
    with pytest.raises(UserError, match=r"label 2 is beyond the 2 classes"):
        bench(clip, exact(), splits, 2, options)
    with pytest.raises(UserError, match="split 'test' has no images"):
        bench(clip, exact(), splits | {"test": lambda: iter(())}, 3, options)
    for wrong in ({"ks": (0,)}, {"top": 1}, {"pool": "sum"}, {"draws": 0}):
        with pytest.raises(UserError):
            BenchOptions(**wrong)


def test_the_pooled_embedding_has_no_maps(splits: dict[str, Any]) -> None:
    clip = clip_of("plain")
    sae = cl.CrossLayerTranscoder(1, clip.embed_dim, 24, cl.TopK(4), "sae", sites=cl.Sites("final"), seed=0).eval()
    found = bench(clip, sae, splits, 3, BenchOptions(ks=(1,), draws=20))
    assert found.layers == ["final"]
    assert "coherence" not in found.measures
    assert any("spatial coherence" in note for note in found.notes)
    assert found.l0["trained"] == [4.0]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    model = CONFIG["model"] | {"transcoder": CONFIG["model"]["transcoder"] | {"sites": {"layers": [3]}}}
    main(["fit", "--config", str(write(tmp_path, model=model))])
    capsys.readouterr()
    small = ["--images", "8", "--train-images", "12", "--val-images", "4", "--sparse", "1"]
    second = "{class_path: FrozenViT, init_args: {name: test_vit, pretrained: null, image_size: 32}}"
    main(["bench", "--run", "runs/small", *small, "--index", second, "--output", "bench.json"])
    said = capsys.readouterr().out
    assert "test_vit (random weights)" in said
    assert "linear probe of the reconstruction" in said
    assert "over untrained" in said
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert saved["run"] == "runs/small"
    assert len(saved["bench"]["measures"]["reconstruction"]["layers"]) == 1
    for words, reason in (
        (["--images", "0"], "--images must be at least 1"),
        (["--top", "1"], "--top must be at least 2"),
        (["--sparse", "0"], "at least one column"),
        (["--output", "runs"], "is a folder"),
    ):
        with pytest.raises(SystemExit):
            main(["bench", "--run", "runs/small", *words])
        assert reason in capsys.readouterr().err


def test_names_of_a_second_backbone(tmp_path: Path) -> None:
    demo = _described("demo")
    assert cl.backbone.make.make_backbone(demo).name.startswith("demo")
    assert _described("ViT-B-32-quickgelu")["init_args"] == {"name": "ViT-B-32-quickgelu", "pretrained": "openai"}
    assert _described("ViT-B-32:laion400m_e32")["init_args"]["pretrained"] == "laion400m_e32"
    timm = _described("vit_small_patch14_dinov2")
    assert timm["class_path"] == "clt_lightning.FrozenViT"
    assert timm["init_args"] == {"name": "vit_small_patch14_dinov2", "pretrained": "default"}
    (tmp_path / "second.yaml").write_text("{pretrained: demo}")
    assert _described(str(tmp_path / "second.yaml")) == {"pretrained": "demo"}
    opened: Any = SimpleNamespace(clip=SimpleNamespace(device="cpu"))
    assert second_backbone(opened, None) == (None, "own embedding")
    for text, reason in (("no_such_vit", "no_such_vit"), (str(tmp_path / "no.yaml"), "no.yaml"), ("{a: [", "no YAML")):
        with pytest.raises(UserError, match="--index") as error:
            second_backbone(opened, text)
        assert reason in str(error.value)
