"""Dense read-out: targets of patches, and probes of them with known answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.analysis import dense
from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.data.worlds import renders
from tests.cli.small import write

SAE: dict[str, Any] = {"sites": cl.Sites("resid_post", layers=[0])}


def world() -> tuple[cl.FrozenViT, cl.CrossLayerTranscoder]:
    vit = cl.FrozenViT("test_vit", None, image_size=64, seed=1)
    return vit, cl.CrossLayerTranscoder(1, 64, 96, cl.TopK(8), "sae", seed=0, **SAE).eval()


def batches(n: int, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(n, 3, 64, 64, generator=generator)
    image[:, :, 16:32, 32:64] += 3  # two patches of every image are bright
    return [{"image": image[i : i + 8], "label": torch.zeros(min(8, n - i))} for i in range(0, n, 8)]


def brightness(batch: Any) -> Tensor:
    return torch.nn.functional.avg_pool2d(batch["image"].mean(1), 16)


def is_bright(batch: Any) -> Tensor:
    return (brightness(batch) > 1.5).long()


def mean_ranks(v: np.ndarray) -> np.ndarray:
    return np.array([(v < a).sum() + ((v == a).sum() + 1) / 2 for a in v])


def splits() -> dict[str, list[dict[str, Any]]]:
    return {"train": batches(40, 0), "val": batches(16, 1), "test": batches(24, 2)}


def test_a_number_and_a_class_that_patches_show() -> None:
    vit, sae = world()
    found = dense.read_out(vit, sae, splits(), brightness, "brightness", ks=(1, 8))
    rows = {(row.name, row.k): row for row in found.read_outs}
    assert set(rows) == {*((name, k) for name in ("features", "codes") for k in (None, 1, 8))} | {
        ("reconstruction", None),
        ("swapped", None),
    }
    assert (rows["features", None].r2 or 0) > 0.9
    assert rows["features", 1].r2 < rows["features", 8].r2  # type: ignore[operator]
    # an untrained reconstruction is not what the read-out was learned on
    assert rows["swapped", None].r2 < rows["reconstruction", None].r2  # type: ignore[operator]
    assert found.n == {"train": 640, "val": 256, "test": 384}
    assert len(found.correlations) == 96
    with torch.no_grad():
        read = (vit.read(b["image"], "resid_post", [0])["resid_post"] for b in splits()["test"])
        codes = torch.cat([sae.encode(x).dense()[0] for x in read])
    patches = codes.unflatten(0, (24, -1))[:, 1:].flatten(0, 1)
    target = torch.cat([brightness(b) for b in splits()["test"]]).flatten()
    feature, strength = found.strongest(1)[0]
    ranks: list[Any] = [mean_ranks(v.numpy()) for v in (patches[:, feature], target)]
    assert strength == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-4)
    assert abs(strength) == max(found.correlations.abs().tolist())
    bright = dense.read_out(vit, sae, splits(), is_bright, "bright", ["dark", "bright"])
    first = bright.read_outs[0]
    assert first.accuracy is not None
    assert first.accuracy.value > 0.98
    assert json.loads(json.dumps(bright.to_json()))["read_outs"][0]["accuracy"]["value"] == first.accuracy.value


def test_a_perfect_autoencoder_swaps_without_loss() -> None:
    """Codes x and -x rebuild the stream exactly: the read-out of the features does not notice."""
    vit, _ = world()
    sae = cl.CrossLayerTranscoder(1, 64, 128, cl.TopK(128), "sae", seed=0, **SAE)
    with torch.no_grad():
        eye = torch.eye(64)
        sae.W_enc[0].copy_(torch.cat([eye, -eye]))
        sae.W_dec[0].copy_(torch.cat([eye, -eye])[:, None])
    found = dense.read_out(vit, sae.eval(), splits(), brightness, "brightness")
    rows = {row.name: row for row in found.read_outs}
    assert rows["swapped"].r2 == pytest.approx(rows["features"].r2, abs=1e-4)
    assert rows["swapped"].rank_correlation == pytest.approx(rows["features"].rank_correlation, abs=1e-4)


def test_what_is_refused() -> None:
    vit, sae = world()
    with pytest.raises(UserError, match=r"float numbers of shape .* = \(8, 4, 4\), got \(8, 2, 4\)"):
        dense.read_out(vit, sae, splits(), lambda b: brightness(b)[:, :2], "x")
    with pytest.raises(UserError, match=r"int64 classes .* got \(8, 4, 4\) of float32"):
        dense.read_out(vit, sae, splits(), brightness, "x", ["a", "b"])
    with pytest.raises(UserError, match="gives class 1, there are 1"):
        dense.read_out(vit, sae, splits(), is_bright, "x", ["a"])
    with pytest.raises(UserError, match="split 'val' has no patch with a target"):
        dense.read_out(vit, sae, splits() | {"val": []}, is_bright, "x", ["a", "b"])
    with pytest.raises(UserError, match="the demo's renders know shape, depth, position, not 'normals'"):
        dense.demo_target(vit, 0, 48, "normals")


def test_the_map_of_depths_is_the_pictures() -> None:
    """Where the object is, the picture has its colour; the map does not depend on how often it was asked for."""
    hits = []
    for index in range(30):
        picture = np.asarray(renders.render(11, index, label=0).image).astype(int)  # a red circle
        depth = renders.depth_map(11, index, label=0)
        assert depth.shape == picture.shape[:2]
        assert set(np.unique(depth)) <= set(range(len(renders.DEPTHS)))
        inside = depth == renders.DEPTHS.index("object")
        assert 0.05 < inside.mean() < 0.6
        redness = picture[:, :, 0] - picture[:, :, 1:].max(2)
        hits.append((redness[inside] > 20).mean() - (redness[depth == 0] > 20).mean())
    assert np.mean(hits) > 0.9
    assert min(hits) > 0.5  # a dark texture has little red


def test_targets_of_the_demo_follow_the_preprocessing() -> None:
    """timm crops the border away: the map is that of what the backbone sees."""
    vit, _ = world()
    rows, columns = dense.pixel_sources(vit, 96)
    assert rows.shape == (64, 64)
    assert (np.diff(rows[:, 5]) >= 0).all()
    assert (columns == rows.T).all()
    kept = (rows.max() - rows.min()) / 95
    assert 0.93 < kept < 0.97  # crop_pct 0.95
    seed = 5
    target, classes = dense.demo_target(vit, seed, 96, "shape")
    assert classes == ["background", *renders.SHAPES]
    made = [renders.render(seed, i, size=96) for i in range(4)]
    batch = {"key": [f"0/s{i:07d}" for i in range(4)], "label": torch.tensor([m.label for m in made])}
    found = target(batch)
    assert found.shape == (4, 4, 4)
    for picture, m in zip(found, made):
        assert set(picture.unique().tolist()) <= {0, m.label // 8 + 1}
        assert bool((picture > 0).any())
    depth, none = dense.demo_target(vit, seed, 96, "depth")
    assert none is None
    values = depth(batch)
    assert 0 <= float(values.min()) <= float(values.max()) <= 3
    assert bool((values[found > 0] >= 1).all())  # half of it or more is at place 2
    position, none = dense.demo_target(vit, seed, 96, "position")
    assert none is None
    for image, away in zip(found, position(batch)):
        nearest, inside = away.flatten().argmin(), (image > 0).flatten()
        assert bool(inside[nearest]) or float(away.min()) < 0.25
        # of a grid's patches the farthest is at least half a side away from any point of the picture
        assert 0 <= float(away.min()) < 0.5 < float(away.max()) < 2**0.5
        assert float(away.flatten()[inside].mean()) < float(away.flatten()[~inside].mean())


def test_a_class_of_its_own_has_its_own_features() -> None:
    """By hand: a code's ranks against being of each class."""
    vit, sae = world()

    def thirds(batch: Any) -> Tensor:
        rows = torch.tensor([0, 1, 1, 2])[:, None].expand(4, 4)
        return rows.expand(len(batch["image"]), 4, 4).contiguous()

    found = dense.read_out(vit, sae, splits(), thirds, "row", ["top", "middle", "bottom"])
    assert found.by_class is not None
    assert found.by_class.shape == (3, 96)
    with torch.no_grad():
        read = (vit.read(b["image"], "resid_post", [0])["resid_post"] for b in splits()["test"])
        codes = torch.cat([sae.encode(x).dense()[0] for x in read])
    patches = codes.unflatten(0, (24, -1))[:, 1:].flatten(0, 1)
    target = torch.cat([thirds(b) for b in splits()["test"]]).flatten()
    for number, name in enumerate(found.classes or ()):
        feature, strength = found.strongest(1, name)[0]
        ranks: list[Any] = [mean_ranks(v.numpy()) for v in (patches[:, feature], (target == number).float())]
        assert strength == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-4)
    feature, strength = found.strongest(1)[0]
    ranks = [mean_ranks(v.numpy()) for v in (patches[:, feature], (target > 0).float())]
    assert strength == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-4)
    said = found.to_json()["features_by_class"]
    assert list(said) == ["top", "middle", "bottom"]
    assert len(said["top"]) == 5


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"class_path": "Demo", "init_args": {"root": "data", "n_train": 32, "n_test": 16, "batch_size": 8}}
    main(["fit", "--config", str(write(tmp_path, data=data))])
    run = tmp_path / "runs" / "small" / "version_0"
    main(["probe", "--run", str(run), "--dense", "shape", "--dense", "depth", "--sparse", "4", "--layer", "1"])
    said = capsys.readouterr().out
    assert "rank correlation" in said
    assert "swapped" in said
    saved = json.loads((run / "probe" / "results.json").read_text())
    assert [entry["target"] for entry in saved["dense"]] == ["shape", "depth"]
    assert saved["dense"][1]["layer"] == 1
    assert saved["dense"][0]["patches"] == {"train": 1152, "val": 576, "test": 576}
    assert "classes" not in saved
