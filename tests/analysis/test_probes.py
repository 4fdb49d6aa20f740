"""Linear read-outs: known answers, what is refused, and the head that a backbone without text takes its logits from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.analysis import open_run
from clt_lightning.analysis.probes import (
    Rows,
    classifier_head,
    collect,
    fit,
    fit_classes,
    fit_numbers,
    probe_images,
    spearman,
)
from clt_lightning.analysis.probes.fit import f_statistic
from clt_lightning.analysis.probes.images import probe_head
from clt_lightning.backbone.class_head import ClassHead
from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from tests.cli.small import CONFIG, write


def clusters(n: int, seed: int, noise: float = 0.3, d: int = 12) -> Rows:
    """Three classes that columns 2 and 7 tell apart; the others say nothing."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = torch.randn(n, d, generator=generator)
    places = torch.tensor([[2.0, 1.0], [-1.0, 1.0], [-1.0, -2.0]])
    x[:, [2, 7]] = places[y] + noise * torch.randn(n, 2, generator=generator)
    return Rows(5 * x + 40, y)  # columns far from 0


def test_classes_that_columns_tell_apart() -> None:
    train, val, test = clusters(240, 0), clusters(90, 1), clusters(300, 2)
    whole = fit_classes(train, val, 3)
    assert float((whole.classes(test.x) == test.y).float().mean()) > 0.98
    two = fit_classes(train, val, 3, k=2)
    assert two.chosen is not None
    assert set(two.chosen.tolist()) == {2, 7}
    assert float((two.classes(test.x) == test.y).float().mean()) > 0.98
    one = fit_classes(train, val, 3, k=1)
    assert float((one.classes(test.x) == test.y).float().mean()) < 0.95
    assert torch.equal(whole(test.x[:1]).argmax(1), whole.classes(test.x)[:1])


def test_the_penalty_is_the_validation_splits_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of those on offer, alone as well; the training images would take the weakest."""
    train, val = clusters(100, 0, noise=1.5, d=60), clusters(600, 1, noise=1.5, d=60)
    chosen = fit_classes(train, val, 3)
    on_val = {}
    for penalty in fit.PENALTIES:
        monkeypatch.setattr(fit, "PENALTIES", (penalty,))
        alone = fit_classes(train, val, 3)
        assert alone.penalty == penalty
        on_val[penalty] = float((alone.classes(val.x) == val.y).float().mean())
    assert on_val[chosen.penalty] >= max(on_val.values()) - 0.01
    assert max(on_val.values()) - min(on_val.values()) > 0.03  # there is something to choose
    assert chosen.penalty > min(fit.PENALTIES)


def test_the_f_statistic_by_hand() -> None:
    rows = clusters(60, 4)
    x, y = rows.x.double().numpy(), rows.y.numpy()
    groups = [x[y == c] for c in range(3)]
    between = sum(len(g) * (g.mean(0) - x.mean(0)) ** 2 for g in groups) / 2
    within = sum(((g - g.mean(0)) ** 2).sum(0) for g in groups) / (60 - 3)
    np.testing.assert_allclose(f_statistic(rows.x.double(), rows.y, 3).numpy(), between / within, rtol=1e-9)
    assert float(f_statistic(torch.ones(60, 1), rows.y, 3)) == 0


def rare_and_telling(n: int, seed: int, classes: int = 8, rare: int = 400) -> Rows:
    """Three columns hold the three bits of the class, with noise; the others fire on two images, whichever they are."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    bits = ((y[:, None] >> torch.arange(3)) & 1).float() + 0.25 * torch.randn(n, 3, generator=generator)
    x = torch.zeros(n, 3 + rare)
    x[:, :3] = bits
    for column in range(3, 3 + rare):
        x[torch.randperm(n, generator=generator)[:2], column] = 1 + torch.rand(2, generator=generator)
    return Rows(x, y)


@pytest.mark.parametrize("each", [2, 3, 5])
def test_with_few_images_a_class_rare_features_are_not_chosen(each: int) -> None:
    """By chance some fire on two images of one class: their F statistic is the largest, and they tell nothing."""
    train, val, test = (rare_and_telling(8 * n, seed) for n, seed in ((each, 0), (each, 1), (20, 2)))
    by_f = f_statistic(train.x, train.y, 8).argsort(descending=True)[:3]
    if each == 2:  # of two images, both of a class: nothing is left within the classes
        assert not {0, 1, 2} & set(by_f.tolist())
    probe = fit_classes(train, val, 8, k=3)
    assert probe.chosen is not None
    assert set(probe.chosen.tolist()) == {0, 1, 2}
    assert float((probe.classes(test.x) == test.y).float().mean()) > 0.6


def test_a_feature_of_one_class_alone_is_chosen_where_it_has_its_images() -> None:
    """What fires on a class and on nothing else is no accident: rare features are not left out as such."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 10
    x = 0.5 * torch.randn(200, 30, generator=generator)
    x[:, 7] = (y == 3).float()
    assert int(fit.class_score(x, y, 10).argmax()) == 7
    constant = fit.class_score(torch.ones(200, 2), y, 10)
    assert constant.tolist() == [0, 0]


def test_of_numbers_rare_columns_are_not_chosen_either() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([torch.randn(39, generator=generator), torch.tensor([9.0])])
    x = torch.stack([y + 1.5 * torch.randn(40, generator=generator), (y == 9).float()], 1)
    rows = Rows(x, y)
    old = torch.corrcoef(torch.cat([x.T, y[None]]))[2, :2].abs()
    assert int(old.argmax()) == 1
    chosen = fit_numbers(rows, rows, k=1).chosen
    assert chosen is not None
    assert chosen.tolist() == [0]


def test_numbers() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 6, generator=generator)
    y = 3 * x[:, 1] - 2 * x[:, 4] + 7
    train, val = Rows(x[:300], y[:300]), Rows(x[300:], y[300:])
    torch.testing.assert_close(fit_numbers(train, val)(val.x)[:, 0], val.y, rtol=0, atol=1e-3)
    chosen = fit_numbers(train, val, k=2).chosen
    assert chosen is not None
    assert chosen.tolist() == [1, 4]
    with pytest.raises(UserError, match="never changes"):
        fit_numbers(Rows(x, torch.ones(400)), val)
    with pytest.raises(UserError, match="reads 1 to 6"):
        fit_numbers(train, val, k=7)


def test_rank_correlation_with_ties() -> None:
    generator = torch.Generator().manual_seed(8)
    x = torch.relu(torch.randn(50, 5, generator=generator)).round(decimals=1)
    x[:, 4] = 2.0
    y = torch.randint(0, 4, (50,), generator=generator).float()

    def ranks(values: Tensor) -> np.ndarray:
        v = values.numpy()
        return np.array([(v < a).sum() + ((v == a).sum() + 1) / 2 for a in v])

    expected = [np.corrcoef(ranks(x[:, i]), ranks(y))[0, 1] for i in range(4)]
    found = spearman(x, y, chunk=2)
    np.testing.assert_allclose(found[:4].numpy(), expected, atol=1e-6)
    assert float(found[4]) == 0
    assert float(spearman(y[:, None].exp(), y)[0]) == pytest.approx(1)


def vit(seed: int = 1, **options: Any) -> cl.FrozenViT:
    return cl.FrozenViT("test_vit", None, image_size=32, seed=seed, **options)


def pictures(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Three flat colours with noise, in batches of 8; some without a label."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n, 8):
        label = torch.arange(start, min(start + 8, n)) % 4 - 1
        image = 0.5 * torch.randn(len(label), 3, 32, 32, generator=generator)
        for row, c in enumerate(label.tolist()):
            image[row, max(c, 0)] += 2
        yield {"image": image, "label": label, "key": [str(i) for i in range(start, start + len(label))]}


def test_a_head_without_a_text_tower(tmp_path: Path) -> None:
    backbone = vit()
    assert not backbone.names_classes(["a"], None)
    splits = {name: list(pictures(n, i)) for i, (name, n) in enumerate({"train": 64, "val": 40, "test": 48}.items())}
    (result,) = probe_images(backbone, None, splits, 3)
    assert result.test.value > 0.9
    assert result.test.low <= result.test.value <= result.test.high
    assert result.n == {"train": 48, "val": 30, "test": 36}  # those with a label
    names = ["red", "green", "blue"]
    probe_head(backbone, result, names).save(tmp_path)
    head = ClassHead.load(tmp_path)
    assert head is not None
    backbone.use_head(head)
    assert backbone.head == "probe"
    matrix = backbone.head_for(names, [])
    rows = collect(backbone, None, splits["test"])["embedding"]
    predicted = backbone.logits(rows.x, matrix).argmax(1)
    assert float((predicted == rows.y).float().mean()) == result.test.value
    with pytest.raises(UserError, match=r"names 3 classes, the data 2 others"):
        backbone.head_for(names[:2], [])
    with pytest.raises(UserError, match="made for another backbone"):
        vit(seed=2).use_head(head)
    (tmp_path / "probe" / "head.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="is damaged"):
        ClassHead.load(tmp_path)
    assert ClassHead.load(tmp_path / "nowhere") is None


def test_the_models_own_classifier_as_a_head() -> None:
    import timm

    small: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    model: Any = timm.create_model("vit_tiny_patch16_224", **small)
    torch.nn.init.normal_(model.head.bias)
    torch.nn.init.normal_(model.head.weight)
    backbone = cl.FrozenViT.from_model(model)
    head, agreement = classifier_head(backbone, list(pictures(64, 3)), ["a", "b", "c"])
    assert agreement > 0.9
    images = next(pictures(8, 9))["image"]
    backbone.use_head(head)
    found = backbone.logits(backbone.encode_image(images), backbone.head_for(["a", "b", "c"], []))
    assert torch.equal(found.argmax(1), model(images).argmax(1))
    assert backbone.head == "classifier"
    with pytest.raises(UserError, match="classifier of 3 classes, the data name 2"):
        classifier_head(backbone, list(pictures(8, 3)), ["a", "b"])


def test_what_is_refused() -> None:
    backbone = vit()
    batches = list(pictures(16, 0))
    bare = [{"image": batch["image"]} for batch in batches]
    with pytest.raises(UserError, match=r"split 'train': the images have no labels"):
        probe_images(backbone, None, {"train": bare, "val": bare, "test": bare}, 3)
    unlabelled = [batch | {"label": torch.full_like(batch["label"], -1)} for batch in batches]
    with pytest.raises(UserError, match=r"split 'val': the images have no labels"):
        probe_images(backbone, None, {"train": batches, "val": unlabelled, "test": batches}, 3)
    one = [batch | {"label": torch.zeros_like(batch["label"])} for batch in batches]
    with pytest.raises(UserError, match="at least two classes among the training images"):
        probe_images(backbone, None, {"train": one, "val": one, "test": one}, 3)
    with pytest.raises(UserError, match="label 2 is beyond the 2 classes"):
        probe_images(backbone, None, dict.fromkeys(("train", "val", "test"), batches), 2)
    many = [batch | {"multi_hot": torch.zeros(len(batch["label"]), 3)} for batch in batches]
    with pytest.raises(UserError, match="images of several categories"):
        collect(backbone, None, many)
    sae = cl.CrossLayerTranscoder(1, 64, 64, cl.TopK(4), "sae", sites=cl.Sites("resid_post", layers=[-1]))
    with pytest.raises(UserError, match="layer 1 does not exist: the transcoder has layers 0 to 0"):
        collect(backbone, sae, batches, ["codes"], layer=1)
    with pytest.raises(UserError, match="reads one of embedding"):
        collect(backbone, sae, batches, ["logits"])


def test_pooling() -> None:
    backbone = vit()
    sae = cl.CrossLayerTranscoder(1, 64, 64, cl.TopK(4), "sae", sites=cl.Sites("resid_post", layers=[-1]), seed=0)
    batches = [batch | {"label": batch["label"].clamp(min=0)} for batch in pictures(16, 0)]
    images = torch.cat([batch["image"] for batch in batches])
    stream = backbone.read(images, "resid_post", [5])["resid_post"][0].unflatten(0, (16, -1))
    for pool, expected in (
        ("cls", stream[:, 0]),
        ("mean", stream[:, 1:].mean(1)),
        ("max", stream[:, 1:].amax(1)),
    ):
        found = collect(backbone, sae, batches, ["features", "codes"], pool)
        torch.testing.assert_close(found["features"].x, expected, rtol=1e-5, atol=1e-5)
        assert found["codes"].x.shape == (16, 64)


def test_the_command_and_what_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backbone without a text tower: after `probe`, `test` and `steer` have class logits."""
    monkeypatch.chdir(tmp_path)
    chosen = {
        "class_path": "FrozenViT",
        "init_args": {"name": "test_vit", "pretrained": None, "image_size": 32},
    }
    data = {
        "class_path": "Demo",
        "init_args": {"root": "data", "n_train": 96, "n_test": 64, "size": 32, "batch_size": 8},
    }
    main(["fit", "--config", str(write(tmp_path, model=CONFIG["model"] | {"backbone": chosen}, data=data))])
    run = tmp_path / "runs" / "small" / "version_0"
    assert open_run(run).head is None
    with pytest.raises(SystemExit):
        main(["steer", "--run", str(run), "--scale", "0/0=0"])
    assert "probe" in capsys.readouterr().err
    main(["probe", "--run", str(run), "--of", "embedding", "--of", "codes", "--sparse", "1,4"])
    said = capsys.readouterr().out
    assert "top-1 %" in said
    saved = json.loads((run / "probe" / "results.json").read_text())["classes"]
    assert [(row["source"], row["k"]) for row in saved] == [
        *(("embedding", k) for k in (None, 1, 4)),
        *(("codes", k) for k in (None, 1, 4)),
    ]
    opened = open_run(run)
    assert opened.head is not None
    assert opened.head.shape == (64, 64)
    rows = collect(opened.clip, None, opened.batches("test"))["embedding"]
    right = (opened.clip.logits(rows.x, opened.head).argmax(1) == rows.y).float().mean()
    assert float(right) == pytest.approx(saved[0]["test"]["value"])
    main(["steer", "--run", str(run), "--scale", "0/0=0", "--images", "8"])
    main(["test", "--run", str(run), "--evaluate.enabled=false"])
    results = json.loads((run / "results.json").read_text())
    found = results["metrics"]["test"]["values"]["zero_shot/original"]
    assert found == pytest.approx(saved[0]["test"]["value"])
    with pytest.raises(SystemExit):
        main(["probe", "--run", str(run), "--head", "classifier"])
    assert "classifier of 1000 classes, the data name 64" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["probe", "--run", str(run), "--sparse", "0"])
    assert "reads at least one column" in capsys.readouterr().err
