"""One forward of every image for everything that is measured; analyses of one's own on the same forwards."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.tower import BlockCalls
from clt_lightning.analysis import (
    Analysis,
    Arm,
    ArmRunner,
    Batch,
    CascadeOptions,
    EvaluateOptions,
    FaithfulnessOptions,
    FeatureOptions,
    Subject,
    Suite,
    evaluate,
    load_evaluation,
    load_metrics,
    observe,
    plan_arms,
)
from clt_lightning.analysis.arm_table import Arms
from clt_lightning.analysis.arms import Known, sampled
from clt_lightning.analysis.evaluate import EffectOptions
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.callbacks import Evaluate, Reconstruction, RunRecord, Shares, ZeroShot
from clt_lightning.core.errors import UserError
from clt_lightning.core.sites import Sites
from clt_lightning.interventions import lanes
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import CrossLayerTranscoder, TopK

from .test_evaluate import trainer
from .world import CLASSES, LAYERS, POSITIONS, TEMPLATES, Made, make_clt, make_module


class Largest(Analysis):
    """The largest entry of the stream before the blocks, and how many images there were."""

    needs: tuple[str, ...] = ("streams", "before_mlp", "attention")

    def begin(self, subject: Subject) -> None:
        self.largest, self.images = 0.0, 0

    def update(self, batch: Batch) -> None:
        seen = batch.seen
        layers = list(range(LAYERS))
        assert sorted(seen.streams) == sorted(seen.before_mlp) == list(range(len(seen.attention))) == layers
        assert [len(part) for part in (seen.streams[1], seen.attention[1], batch.labels)] == [batch.n_images] * 3
        self.largest = max(self.largest, *(float(stream.abs().max()) for stream in seen.streams.values()))
        self.images += batch.n_images

    def result(self) -> Any:
        return {"largest": self.largest, "images": self.images, "nothing": math.nan}


def options(**more: Any) -> EvaluateOptions:
    return EvaluateOptions(
        faithfulness=FaithfulnessOptions(draws=2), features=FeatureOptions(k=3, samples=2), bootstrap=20, **more
    )


def test_own_analyses_see_the_same_forwards(clip: FrozenCLIP, clt: CrossLayerTranscoder, tmp_path: Path) -> None:
    data = Made(n=11)
    found, _, _ = evaluate(
        clip, clt, data.test_dataloader(), CLASSES, TEMPLATES, options=options(), progress=False, extra=[Largest()]
    )
    streams = clip.read(data.everything()[0], "resid_pre")["resid_pre"]
    assert found.extra["Largest"]["largest"] == pytest.approx(float(streams.abs().max()), rel=1e-6)
    assert found.extra["Largest"]["images"] == 11
    found.save(tmp_path)
    assert load_evaluation(tmp_path)["extra"]["Largest"]["nothing"] is None  # JSON has no NaN


def test_mistakes_in_own_analyses(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    class Tensors(Largest):
        def result(self) -> Any:
            return {"values": torch.ones(2)}

    class Greedy(Largest):
        needs = ("stream",)

    subject = Subject(clip, clt)
    with pytest.raises(UserError, match="two analyses are called 'Largest'"):
        Suite(subject, [Largest(), Largest()])
    with pytest.raises(UserError, match=r"Greedy\.needs: unknown are stream; there are streams, before_mlp, attention"):
        Suite(subject, [Greedy()])
    with pytest.raises(UserError, match=r"result of the analysis 'Tensors' .*tolist"):
        Suite(subject, [], [Tensors()]).extra_results()


def test_every_image_is_run_once(tmp_path: Path) -> None:
    """Once through the tower and the transcoder; every window from behind its first MLP on; no model twice."""
    model, data, counter = make_module(), Made(n=26, n_train=16, batch_size=8), BlockCalls()
    reads: list[int] = []
    model.transcoder.register_forward_hook(lambda module, args, out: reads.append(args[0].shape[1]))
    cascade = CascadeOptions(control_share=0.0)
    callbacks = Reconstruction(), ZeroShot(["0-", "1"], ["all", "patch"], True), Shares(), RunRecord()
    whole = Evaluate(effects=EffectOptions(enabled=False), bootstrap=20, cascade=cascade)
    trainer(tmp_path, *callbacks, whole, counter).test(model, datamodule=data, verbose=False)
    batches, training = 4, 2
    assert counter.calls[0] == batches + training  # no window runs the first block again
    assert counter.images[0] == 26 + 16
    assert reads == [8 * POSITIONS] * training + [8 * POSITIONS] * 3 + [2 * POSITIONS]
    arms = [*plan_arms(cascade, LAYERS), Arm("replaced", 0, 2, "patch"), Arm("replaced", 1, 1, "patch")]
    models = {ArmRunner(model.clip, model.transcoder).model_of(arm) for arm in arms} - {Arm("original")}
    assert Arm("true_x", 1, 1, "all") not in models  # the same as replaced alone
    assert Arm("replaced", 1, 2, "patch") not in models  # what the last MLP writes at patches is read by nothing
    blocks = sum(LAYERS - 1 - m.first for m in models if m.first is not None)
    assert sum(counter.images) == 26 * (LAYERS + blocks) + 16 * (LAYERS + LAYERS - 1)
    # side by side: a block is called once for all models
    assert sum(counter.calls) == (batches + training) * (LAYERS + LAYERS - 1)


@pytest.mark.parametrize("batch_size", [4, 26])
@pytest.mark.parametrize("images_at_once", [10_000, 12])
def test_arms_run_side_by_side(
    clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch, batch_size: int, images_at_once: int
) -> None:
    """As many images at once as there is room for, or as one arm has; each goes through a block only as often."""
    clt, axis = make_clt(), 0 if clip.batch_first else 1
    images: list[int] = []
    handles = [block.register_forward_pre_hook(lambda m, i: images.append(i[0].shape[axis])) for block in clip.blocks]
    chosen = options(cascade=CascadeOptions(control_share=0.2), effects=EffectOptions(enabled=False))
    data = Made(batch_size=batch_size)
    monkeypatch.setattr(lanes, "NUMBERS", images_at_once * POSITIONS * clip.d_model)
    evaluate(clip, clt, data.test_dataloader(), CLASSES, TEMPLATES, options=chosen, progress=False)
    for handle in handles:
        handle.remove()
    assert max(images) <= max(batch_size, images_at_once)
    n = len(range(0, 26, batch_size))
    arms = plan_arms(CascadeOptions(control_share=0.2), LAYERS)
    runner = ArmRunner(clip, clt)
    models = {runner.model_of(arm) for arm in arms if not arm.sampled} - {Arm("original")}
    alone = sum(LAYERS - 1 - m.first for m in models if m.first is not None) + LAYERS
    few = {runner.model_of(arm) for arm in arms if arm.sampled} - models - {Arm("original")}
    one_by_one = sum(LAYERS - 1 - m.first for m in few if m.first is not None)
    keys = [key for batch in data.test_dataloader() for key in batch["key"]]
    assert sum(images) == 26 * alone + int(sampled(keys, 0.2).sum()) * one_by_one
    assert len(images) == n * (2 * LAYERS - 1) if images_at_once > 26 else len(images) < n * (alone + one_by_one / 2)


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer", "sae"])
def test_side_by_side_every_arm_is_what_it_is_alone(clip: FrozenCLIP, topology: str) -> None:
    clt, images = make_clt(topology), Made(n=5).everything()[0]
    means = torch.randn(LAYERS, 2, clip.d_model, generator=torch.Generator().manual_seed(0))
    runner = ArmRunner(clip, clt, means)
    arms = plan_arms(CascadeOptions(), LAYERS)
    seen = observe(clip, images, clt=clt, needs=runner.needs(arms))
    out = clt(seen.x)
    some = torch.tensor([True, False, True, False, False])
    together = runner.all_embeddings(arms, Known(seen, out.codes, out.y_hat), some)
    for arm, found in zip(arms, together):
        alone = runner.embeddings(arm, seen, out.codes, out.y_hat)
        torch.testing.assert_close(found, alone[some] if arm.sampled else alone, atol=2e-6, rtol=0)


def test_validation_and_test_log_the_same_numbers(tmp_path: Path) -> None:
    """One suite twice: cheap at a validation, whole at test; and results.json holds each number once."""
    model, data = make_module(), Made(n=26, n_train=30)

    class Both(Made):
        val_dataloader = Made.test_dataloader

        def split(self, name: str) -> bool:
            return True

    data = Both(n=26, n_train=30)
    parts = Reconstruction(), ZeroShot(["0-", "1"], ["all", "patch"], include_mean_ablation=True), Shares(10_000)
    (val,) = trainer(tmp_path, *parts).validate(model, datamodule=data, verbose=False)
    runner = trainer(tmp_path, *parts, Evaluate(bootstrap=20, cascade=CascadeOptions(firsts=[0])), RunRecord())
    (test,) = runner.test(model, datamodule=data, verbose=False)
    assert {name.removeprefix("val/") for name in val} == {name.removeprefix("test/") for name in test}
    for name, value in val.items():
        assert test[name.replace("val/", "test/")] == pytest.approx(value, rel=1e-6), name
    run = Path(str(runner.log_dir))
    content = json.loads((run / "results.json").read_text())
    assert content["metrics"]["test"]["values"] == {}
    stored = load_metrics(run, "test")
    assert "zero_shot/replaced/0-0/all" in stored  # the evaluation's other windows are in results.json alone
    for name, value in test.items():
        assert stored[name.removeprefix("test/")] == pytest.approx(value, rel=1e-6), name
    with pytest.raises(UserError, match="holds no numbers of 'val'"):
        load_metrics(run, "val")


def test_mean_ablation_of_a_validation_has_a_mean_for_each_kind_of_token(tmp_path: Path) -> None:
    model, data = make_module(), Made(n=26, n_train=30)
    data.val_dataloader = data.test_dataloader  # type: ignore[method-assign]
    zero_shot = ZeroShot(include_mean_ablation=True, classnames=CLASSES, templates=TEMPLATES)
    (found,) = trainer(tmp_path, zero_shot).validate(model, datamodule=data, verbose=False)
    images, labels, _ = data.everything()
    y = model.clip.capture(data.everything("train")[0]).y.unflatten(1, (-1, POSITIONS))
    means = torch.cat([y[:, :, :1].mean(1), y[:, :, 1:].mean((1, 2))[:, None].expand(-1, POSITIONS - 1, -1)], 1)
    with model.clip.override("mlp_out", lambda layer, x, compute: means[layer].expand_as(x)):
        embeddings = model.clip.encode_image(images)
    right = (embeddings @ model.clip.zero_shot_head(CLASSES, TEMPLATES)).argmax(1).numpy() == labels
    assert found["val/zero_shot/mean_ablated"] == pytest.approx(right[labels >= 0].mean())
    (arms,) = zero_shot.analyses(trainer(tmp_path), model)
    assert isinstance(arms, Arms)
    assert arms.runner.means is not None
    torch.testing.assert_close(arms.runner.means, torch.stack([means[:, 0], means[:, 1]], 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "write", ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "final_tokens", "final"]
)
@pytest.mark.parametrize("tokens", ["all", "patch"])
def test_windows_of_any_site_equal_whole_forwards(clip: FrozenCLIP, write: str, tokens: str) -> None:
    """From what the untouched forward has seen, wherever the site stands in its block."""
    if write == "final" and tokens != "all":
        return
    once = write.startswith("final")
    width = clip.embed_dim if write == "final" else clip.d_model
    sites = Sites(write, write, None if once else [0, 2])  # type: ignore[arg-type]
    sae = CrossLayerTranscoder(1 if once else 2, width, 40, TopK(4), "sae", sites=sites, seed=2)
    images = Made(n=3).everything()[0]
    with torch.no_grad():
        for weight in sae.W_dec:
            weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.2)
    runner = ArmRunner(clip, sae, torch.randn(sae.n_layers, 1 if write == "final" else 2, width))
    arms = [
        Arm(kind, first, sae.n_layers - 1, tokens)
        for kind in ("replaced", "zero_ablated")
        for first in range(sae.n_layers)
    ]
    suite = Suite(Subject(clip, sae), [Arms(runner, [Arm("original"), *arms])])
    seen = observe(clip, images, clt=sae, needs=suite.needs)
    out = sae(seen.x)
    for arm in arms:
        found = runner.embeddings(arm, seen, out.codes, out.y_hat)
        window = runner.blocks[arm.first :]
        with torch.no_grad():
            if arm.kind == "replaced":
                with replaced(clip, sae, window, tokens):
                    whole = clip.encode_image(images)
            else:

                def nothing(layer: int, x: torch.Tensor, compute: Any) -> torch.Tensor:
                    y: torch.Tensor = compute().clone()
                    y[slice(None) if tokens == "all" or y.ndim == 2 else (slice(None), slice(1, None))] = 0
                    return y

                with clip.override(write, nothing, window):
                    whole = clip.encode_image(images)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5, equal_nan=True)
