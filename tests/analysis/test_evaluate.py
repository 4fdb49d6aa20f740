"""The whole evaluation: every number by NumPy from dumped activations, and the same from two processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import open_clip
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from clt_lightning.analysis import (
    CascadeOptions,
    EvaluateOptions,
    Evaluation,
    FaithfulnessOptions,
    FeatureOptions,
    PopulationOptions,
    evaluate,
    load_arrays,
    load_evaluation,
    load_features,
)
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.callbacks import Evaluate, RunRecord
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import CrossLayerTranscoder
from tests.parallel import processes

from .world import (
    CLASSES,
    LAYERS,
    NAME,
    POSITIONS,
    TEMPLATES,
    WIDTH,
    Made,
    make_clt,
    make_module,
    numpy_codes,
    numpy_terms,
    register,
    shake,
)

OPTIONS: dict[str, Any] = {
    "cascade": CascadeOptions(firsts=[0, 1], token_sets=["all", "cls"], control_share=1.0),
    "faithfulness": FaithfulnessOptions(draws=3),
    "features": FeatureOptions(k=3, samples=2),
    "bootstrap": 50,
    "population": PopulationOptions(resamples=40),
}


@pytest.fixture(scope="module")
def found(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> Evaluation:
    data = Made()
    result, features, retrieval = evaluate(
        clip,
        clt,
        data.test_dataloader(),
        CLASSES,
        TEMPLATES,
        data.eval_dataloader("train"),
        EvaluateOptions(**OPTIONS),
        progress=False,
    )
    assert features is not None
    assert retrieval is not None
    return result


def test_reconstruction_by_hand(clip: FrozenCLIP, clt: CrossLayerTranscoder, found: Evaluation) -> None:
    images = Made().everything()[0]
    acts = clip.capture(images)
    codes = numpy_codes(clt, acts.x.double().numpy())
    y_hat = numpy_terms(clt, codes).sum(0) + (clt.b_dec * clt.y_scale[:, None]).detach().double().numpy()[:, None]
    y = acts.y.double().numpy()
    shaped = [v.reshape(LAYERS, len(images), POSITIONS, -1) for v in (y, y_hat, codes)]
    for name, cut in (("cls", slice(0, 1)), ("patch", slice(1, None)), ("all", slice(None))):
        true, rebuilt, z = (v[:, :, cut].reshape(LAYERS, -1, v.shape[-1]) for v in shaped)
        error = ((true - rebuilt) ** 2).sum(2)
        fvu = error.sum(1) / ((true - true.mean(1, keepdims=True)) ** 2).sum((1, 2))
        norms = np.linalg.norm(true, axis=2) * np.linalg.norm(rebuilt, axis=2)
        want = {
            "mse": error.mean(1) / WIDTH,
            "fvu": fvu,
            "r2": 1 - fvu,
            "cosine": ((true * rebuilt).sum(2) / norms).mean(1),
            "l0": (z != 0).sum(2).mean(1),
            "dead": (z == 0).all(1).mean(1),
        }
        for kind, values in want.items():
            assert np.allclose(found.reconstruction[kind][name].numpy(), values, rtol=1e-5), (kind, name)


def test_arms_by_hand(clip: FrozenCLIP, clt: CrossLayerTranscoder, found: Evaluation) -> None:
    images, labels, keys = Made().everything()
    head = clip.zero_shot_head(CLASSES, TEMPLATES).double()
    assert found.keys.tolist() == keys
    assert found.labels.tolist() == labels.tolist()
    known = labels >= 0
    assert (found.images, found.labelled) == (26, int(known.sum())) == (26, 21)
    original = (100 * clip.encode_image(images).double() @ head).numpy()

    def softmax(logits: np.ndarray) -> np.ndarray:
        e = np.exp(logits - logits.max(1, keepdims=True))
        shares: np.ndarray = e / e.sum(1, keepdims=True)
        return shares

    seen = 0
    for index, result in enumerate(found.arms):
        arm = result.arm
        if arm.kind == "original":
            logits = original
        elif arm.kind == "replaced":
            assert arm.first is not None
            assert arm.last is not None
            assert arm.tokens is not None
            with torch.no_grad(), replaced(clip, clt, range(arm.first, arm.last + 1), arm.tokens):
                logits = (100 * clip.encode_image(images).double() @ head).numpy()
        else:
            continue  # test_tower.py
        seen += 1
        right = logits.argmax(1) == labels
        assert result.n == known.sum()
        assert result.top1.value == pytest.approx(right[known].mean())
        assert result.drop.value == pytest.approx(((original.argmax(1) == labels) * 1.0 - right)[known].mean())
        recall = [right[labels == c].mean() for c in range(5)]
        assert result.recall.tolist() == pytest.approx(recall)
        assert result.per_class_recall.value == pytest.approx(np.mean(recall))
        p, q = softmax(original), softmax(logits)
        kl = (p * np.log(p / q)).sum(1)
        assert np.allclose(found.kl[index], kl, atol=2e-4)
        assert result.kl.value == pytest.approx(kl.mean(), abs=2e-4)
        assert found.predicted[index].tolist() == logits.argmax(1).tolist()
        assert result.top5.value == 1  # of five classes
        for number in (result.top1, result.kl, result.per_class_recall):
            assert number.low <= number.value <= number.high
    assert seen == 1 + 4 + 3  # the original, windows 0-2 and 1-2 at two token sets, single layers


def test_population_by_hand(clip: FrozenCLIP, clt: CrossLayerTranscoder, found: Evaluation) -> None:
    images, labels, _ = Made().everything("train")
    head = clip.zero_shot_head(CLASSES, TEMPLATES).double()
    acts = clip.capture(images)
    y_hat = clt(acts.x).y_hat.detach()
    variance = (acts.y - acts.y.mean(1, keepdim=True)).square().sum((1, 2))
    fvu = ((acts.y - y_hat).square().sum((1, 2)) / variance).mean()
    original = clip.encode_image(images).double() @ head
    with torch.no_grad(), replaced(clip, clt):
        cascade = clip.encode_image(images).double() @ head
    known = labels >= 0
    right = [(cosines.argmax(1).numpy() == labels)[known].mean() for cosines in (original, cascade)]
    kl = torch.nn.functional.kl_div(
        (100 * cascade).log_softmax(1), (100 * original).log_softmax(1), log_target=True, reduction="batchmean"
    )
    checks = {check.discrepancy: check for check in found.population}
    assert found.train_images == 30
    assert checks["fvu"].train == pytest.approx(float(fvu), rel=1e-4)
    assert checks["fvu"].held_out == pytest.approx(float(found.reconstruction["fvu"]["all"].mean()))
    assert checks["kl"].train == pytest.approx(float(kl), rel=1e-3)
    assert checks["kl"].held_out == pytest.approx(found.arm("replaced", 0, 2, "all").kl.value, rel=1e-12)
    assert checks["accuracy_drop"].train == pytest.approx(right[0] - right[1])
    assert checks["accuracy_drop"].held_out == pytest.approx(found.arm("replaced", 0, 2, "all").drop.value)
    assert checks["l0"].train == pytest.approx(float(clt.encode(acts.x).l0().float().mean()))
    assert checks["l0"].held_out == pytest.approx(float(found.reconstruction["l0"]["all"].mean()))
    errors = (acts.y - y_hat).square().sum(2).unflatten(1, (30, -1)).sum(2)
    shares = (errors / (variance[:, None] / 30)).mean(0)
    assert checks["outliers"].train == pytest.approx(float((shares > shares.quantile(0.99)).float().mean()))
    assert checks["outliers"].train == pytest.approx(1 / 30)
    for check in checks.values():
        assert len(check.resampled) == 40
        assert 0 < check.p_value <= 1
        assert 0 < check.p_two_sided <= 1


def test_the_drop_on_training_images_is_that_of_the_labelled_ones(clip: FrozenCLIP) -> None:
    """Labels are what the untouched model says, or none: what the replaced one says otherwise is the drop."""
    head, clt = clip.zero_shot_head(CLASSES, TEMPLATES), make_clt(size=0.5)
    batches = list(Made().eval_dataloader("train"))
    right = []
    for batch in batches:
        said = (clip.encode_image(batch["image"]) @ head).argmax(1)
        batch["label"] = torch.where(torch.arange(len(said)) % 3 == 0, -1, said)
        with torch.no_grad(), replaced(clip, clt):
            again = (clip.encode_image(batch["image"]) @ head).argmax(1)
        right += (again == said)[batch["label"] >= 0].tolist()
    test = Made().test_dataloader()
    found, _, _ = evaluate(clip, clt, test, CLASSES, TEMPLATES, batches, EvaluateOptions(**OPTIONS), progress=False)
    (check,) = [check for check in found.population if check.discrepancy == "accuracy_drop"]
    assert 0.2 < 1 - np.mean(right) < 1
    assert check.train == pytest.approx(1 - np.mean(right))


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_left_out_is_said_if_it_was_asked_for(
    clip: FrozenCLIP, asked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Without training images and without means in the transcoder there is no mean ablation."""
    clt = make_clt()
    clt.normalized.fill_(False)
    controls = ["mean_ablated", "zero_ablated"] if asked else ["zero_ablated"]
    options = EvaluateOptions(**(OPTIONS | {"cascade": CascadeOptions(firsts=[0], controls=controls)}))
    with caplog.at_level("INFO"):
        found, _, _ = evaluate(clip, clt, Made().test_dataloader(), CLASSES, TEMPLATES, None, options, progress=False)
    kinds = {result.arm.kind for result in found.arms}
    assert kinds == {"original", "replaced", "zero_ablated"}
    assert ("mean ablation is not measured" in caplog.text) == asked
    assert "no training images: no population check" in caplog.text
    assert {result.ranking for result in found.faithfulness} == {"image"}
    assert {result.ablation for result in found.faithfulness} == {"zero"}
    assert found.population == []
    assert found.train_images == 0


def test_faithfulness_ends_at_known_arms(found: Evaluation) -> None:
    results = {(r.tokens, r.ranking, r.ablation): r for r in found.faithfulness}
    assert len(results) == 2 * 2 * 2
    # nothing taken away: the last layer replaced alone, which is a single-layer arm
    alone = found.arm("replaced", LAYERS - 1, LAYERS - 1, "all")
    for result in results.values():
        assert result.drop_top[0][0].value == alone.top1.value
        assert result.drop_top[1][0] == pytest.approx(alone.kl.value, rel=1e-3, abs=1e-5)
        assert result.original.value == found.arm("original").top1.value


def test_the_file_says_the_same(tmp_path: Path, found: Evaluation) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"schema": 1, "run": {"seed": 3}}))
    found.save(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["run"] == {"seed": 3}
    loaded = load_evaluation(tmp_path)
    assert loaded == json.loads(json.dumps(found.to_json()))
    assert loaded["reconstruction"]["fvu"]["all"]["mean"] == pytest.approx(
        float(found.reconstruction["fvu"]["all"].mean())
    )
    for name in ("cls", "patch", "all"):
        for kind in ("uncentred", "centred"):
            assert np.allclose(np.sum(loaded["contributions"][name][kind], 0), 1)
    arrays = load_arrays(tmp_path)
    assert arrays["arms"].tolist() == [arm.arm.name for arm in found.arms]
    assert np.allclose(((arrays["rank"] == 0).sum(1) / 21), [arm.top1.value for arm in found.arms])
    with pytest.raises(UserError, match="no evaluation of split 'val'"):
        load_evaluation(tmp_path, "val")
    with pytest.raises(UserError, match="there is no arm 'replaced/9-9/all'"):
        found.arm("replaced", 9, 9, "all")


def test_many_labels_and_captions(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    def batches() -> Any:
        for batch in Made(n=12, batch_size=5).test_dataloader():
            hot = torch.zeros(len(batch["label"]), 5)
            hot[batch["label"] >= 0, batch["label"][batch["label"] >= 0]] = 1
            hot[:, 1] = 1
            captions = [[f"a {CLASSES[i % 5]}", "a photo"] for i in range(len(hot))]
            yield batch | {"multi_hot": hot, "captions": captions}

    options = EvaluateOptions(**(OPTIONS | {"faithfulness": FaithfulnessOptions(enabled=False)}))
    found, _, _ = evaluate(clip, clt, batches(), CLASSES, TEMPLATES, options=options, progress=False)
    assert len(found.multilabel) == len(found.retrieval) == len(found.arms)
    assert all(a.arm == b.arm == c.arm for a, b, c in zip(found.arms, found.multilabel, found.retrieval))
    for result in found.multilabel:
        assert 0 <= result.map.value <= 1
        assert result.n == 12
    images = Made(n=12).everything()[0]
    head = clip.zero_shot_head(CLASSES, TEMPLATES)
    labels = Made(n=12).everything()[1]
    top = (clip.encode_image(images) @ head).argmax(1).numpy()
    assert found.multilabel[0].top1_hit.value == pytest.approx(((top == labels) | (top == 1)).mean())
    assert found.retrieval[0].n == 12
    assert found.population == []
    json.dumps(found.to_json(), allow_nan=False)


def test_images_alone(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    """Without classes, labels and keys: what can be measured is, the rest is null."""
    batches = [{"image": batch["image"]} for batch in Made().test_dataloader()]
    found, features, _ = evaluate(clip, clt, batches, options=EvaluateOptions(**OPTIONS), progress=False)
    content = found.to_json()
    assert content["zero_shot"] is None
    assert content["faithfulness"] == []
    assert content["contributions"]["cls"]["std_over_classes"] is None
    assert features is not None
    assert np.isnan(features.stats["label_entropy"]).all()
    assert (features.stats["nearest_class"] == -1).all()


def test_empty_batches_and_a_backbone_in_bf16(clt: CrossLayerTranscoder, found: Evaluation) -> None:
    data = Made()
    batches = list(data.test_dataloader())
    nothing = {"image": batches[0]["image"][:0], "label": batches[0]["label"][:0], "key": []}
    low = shake(FrozenCLIP(NAME, pretrained=None, precision="bf16"))
    options = EvaluateOptions(**OPTIONS)
    train = [nothing, *data.eval_dataloader("train")]
    result, _, _ = evaluate(low, clt, [nothing, *batches, nothing], CLASSES, TEMPLATES, train, options, progress=False)
    assert result.images == found.images
    for one, other in zip(found.reconstruction["fvu"].values(), result.reconstruction["fvu"].values()):
        assert torch.allclose(one, other, rtol=0.05)
    assert torch.allclose(result.contributions["all"].uncentred, found.contributions["all"].uncentred, atol=0.05)


@pytest.mark.parametrize(("topology", "skip"), [("per_layer", True), ("sae", False)])
def test_baselines_are_measured_alike(clip: FrozenCLIP, topology: str, skip: bool) -> None:
    data, clt = Made(), make_clt(topology, skip)
    options = EvaluateOptions(**OPTIONS)
    batches, train = data.test_dataloader(), data.eval_dataloader("train")
    result, features, _ = evaluate(clip, clt, batches, CLASSES, TEMPLATES, train, options, progress=False)
    acts = clip.capture(data.everything()[0])
    y_hat = clt(acts.y if topology == "sae" else acts.x).y_hat.detach()
    fvu = (acts.y - y_hat).square().sum((1, 2)) / (acts.y - acts.y.mean(1, keepdim=True)).square().sum((1, 2))
    assert np.allclose(result.reconstruction["fvu"]["all"].numpy(), fvu.numpy(), rtol=1e-4)
    assert np.allclose(result.contributions["cls"].centred.numpy(), np.eye(LAYERS))
    assert len(result.population) == 5
    assert features is not None
    # the only term is that of the layer itself: all orders end where it is gone, and the others cost nothing
    one = next(r for r in result.faithfulness if r.ranking == "dataset" and r.ablation == "zero")
    assert one.drop_top[1][1] == pytest.approx(one.drop_top[1][LAYERS], rel=1e-4)
    assert one.drop_bottom[1][LAYERS - 1] == pytest.approx(one.drop_bottom[1][0], rel=1e-4)


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=TensorBoardLogger(folder, name="run"),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,
    )


def compare(one: Any, two: Any, path: str = "") -> None:
    """Nested tables with the same numbers."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            if key not in ("seconds", "run"):
                compare(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(two), path
        for i, (a, b) in enumerate(zip(one, two)):
            compare(a, b, f"{path}/{i}")
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6), path
    else:
        assert one == two, path


def evaluated(folder: Path, **options: Any) -> None:
    made = trainer(folder, Evaluate(**OPTIONS), RunRecord(), **options)
    made.test(make_module(), datamodule=Made(n=25, n_train=17), verbose=False)


def evaluated_by_two(folder: Path, models: Path) -> None:
    open_clip.add_model_config(models)
    evaluated(folder, devices=2, strategy="ddp")


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    evaluated(tmp_path)
    register(tmp_path)
    processes.run(evaluated_by_two, tmp_path / "ranks", 2, tmp_path, tmp_path)
    one, two = sorted((tmp_path / "run").iterdir())
    content = json.loads((two / "results.json").read_text())
    assert content["evaluation"]["test"]["run"]["hardware"]["processes"] == 2
    assert "run" not in content  # nothing was trained here
    compare(load_evaluation(one), load_evaluation(two))
    mine, theirs = load_features(one), load_features(two)
    assert mine.keys == theirs.keys
    for name, values in mine.stats.items():
        assert np.allclose(values, theirs.stats[name], atol=1e-5, equal_nan=True), name
    for a, b in zip(mine.layers, theirs.layers):
        for name in a:
            assert np.allclose(a[name], b[name], atol=1e-5), name


def test_mistakes_stop_before_anything_runs(tmp_path: Path) -> None:
    makers: list[Callable[[], Evaluate]] = [
        lambda: Evaluate(cascade=CascadeOptions(firsts=[7])),
        lambda: Evaluate(faithfulness=FaithfulnessOptions(layers=[7])),
    ]
    for make in makers:
        with pytest.raises(UserError, match="7"):
            trainer(tmp_path, make()).test(make_module(), datamodule=Made(), verbose=False)
    with pytest.raises(UserError, match=r"evaluate\.bootstrap"):
        Evaluate(bootstrap=0)
