"""The whole path through the command line, on the demo's CLIP: fit, validate, test, files, tags, two processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import clt_lightning as cl
from clt_lightning.analysis import load_metrics, open_run
from clt_lightning.cli.main import main
from clt_lightning.cli.run_option import named_checkpoint
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.codes import Codes

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def options(demo_tars: Path, runs: Path, *more: str) -> list[str]:
    data = {"root": demo_tars, "n_train": 256, "n_test": 75, "world": 5, "batch_size": 16, "num_workers": 0}
    return [
        "--config",
        str(CONFIG),
        *(f"--data.init_args.{key}={value}" for key, value in data.items()),
        "--model.transcoder.n_features=96",
        "--model.tokens.statistics=2000",
        "--model.schedule.warmup_steps=0",
        "--trainer.max_steps=12",
        "--trainer.val_check_interval=6",
        "--trainer.log_every_n_steps=2",
        "--figures.every=0",  # drawing takes longer than the training
        "--figures.per_layer=true",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        # as much of every part of the evaluation as shows that it is there: tests/analysis tests the parts
        "--evaluate.effects={check_images: 8, check_features: 16, check_pairs: 32, integrated_pairs: 8}",
        "--evaluate.population.resamples=50",
        "--evaluate.bootstrap=50",
        f"--runs_dir={runs}",
        *more,
    ]


def results(run: Path, stage: str) -> dict[str, float]:
    return load_metrics(run, stage)


def reconstruction_losses(run: Path) -> list[float]:
    """The FVU of each logged step's tokens, before the step's update: the first one is the start's."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return [event.value for event in events.Scalars("train/loss/reconstruction")]


@pytest.fixture(scope="module")
def run(demo_tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished fit."""
    runs = tmp_path_factory.mktemp("runs")
    main(["fit", *options(demo_tars, runs)])
    return runs / "quickstart" / "version_0"


def test_a_run_lives_in_one_folder(run: Path) -> None:
    names = {p.name for p in run.iterdir()}
    assert {"config.yaml", "checkpoints", "transcoder", "results.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (run / "checkpoints" / "last.ckpt").is_file()
    record = json.loads((run / "results.json").read_text())
    text = json.dumps(record)
    for word in ("torch", "lightning", "open_clip", "gelu", "templates", "seed"):
        assert word in text


def test_training_learns(run: Path) -> None:
    # not the whole loss: the cascade's part comes in after a quarter of the run
    losses = reconstruction_losses(run)
    assert losses[0] <= 1.5
    assert losses[-1] < 0.8 * losses[0]


def test_tensorboard_tags(run: Path) -> None:
    tags = set(EventAccumulator(str(run)).Reload().Tags()["scalars"])
    expected = {
        "train/loss",
        "train/loss/reconstruction",
        "train/loss/cascade_stream",
        "train/l0",
        "train/tokens_per_second",
    }
    for kind in ("fvu", "l0", "cosine", "dead"):
        for token_set in ("cls", "patch", "all"):
            expected |= {f"val/{kind}/{token_set}", f"val/{kind}/{token_set}/layer_00"}
    n = cl.FrozenCLIP(pretrained="demo").n_layers
    expected |= {"val/zero_shot/original", f"val/zero_shot/replaced/0-{n - 1}/all"}
    assert expected <= tags


def test_validate_and_test_give_the_numbers_of_fit(run: Path, demo_tars: Path, tmp_path: Path) -> None:
    fitted = results(run, "val")
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    same_images = f"--data.init_args.test={demo_tars / 'val'}"
    for command, stage, more in (("validate", "val", []), ("test", "test", [same_images])):
        main([command, *options(demo_tars, tmp_path, f"--name={command}", *more), checkpoint])
        again = results(tmp_path / command / "version_0", stage)
        for key, value in fitted.items():
            assert again[key] == pytest.approx(value, rel=1e-9, nan_ok=True), key
        events = EventAccumulator(str(tmp_path / command / "version_0")).Reload()
        assert [event.step for event in events.Scalars(f"{stage}/fvu/all")] == [12]
        content = json.loads((tmp_path / command / "version_0" / "results.json").read_text())
        found = content["metrics"]["val"] if stage == "val" else content["evaluation"]["test"]
        splits = found["run"]["data"]["description"]["splits"]
        assert splits[stage] == {"split": stage, "shards": 1, "samples": 75}
        assert ("val" if stage == "test" else "test") not in splits


def test_test_reads_other_images_than_validation(run: Path, demo_tars: Path, tmp_path: Path) -> None:
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    main(["test", *options(demo_tars, tmp_path), checkpoint])
    found = results(tmp_path / "quickstart" / "version_0", "test")
    assert found["fvu/all"] != results(run, "val")["fvu/all"]
    record = json.loads((tmp_path / "quickstart" / "version_0" / "results.json").read_text())["evaluation"]["test"]
    splits = record["run"]["data"]["description"]["splits"]
    assert splits["test"] == {"split": "test", "shards": 1, "samples": 75}
    assert "val" not in splits


@pytest.mark.parametrize("name", ["last", "best"])
def test_predict_writes_embeddings_and_codes_of_every_image(run: Path, name: str) -> None:
    for size in (40, 32):  # the second one leaves nothing of the first
        main(["predict", "--run", str(run), "--ckpt_path", name, f"--data.init_args.eval_batch_size={size}"])
    folder = run / "predictions" / "test"
    names = [f"0-{batch:06d}" for batch in range(3)]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"{n}.{end}" for n in names for end in ("json", "safetensors")
    )
    about = [json.loads((folder / f"{n}.json").read_text()) for n in names]
    tensors = [load_file(folder / f"{n}.safetensors") for n in names]
    module = cl.CLTModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    assert [len(a["keys"]) for a in about] == [len(t["embeddings"]) for t in tensors] == [32, 32, 11]
    assert len({key for a in about for key in a["keys"]}) == 75
    found = Codes.from_topk(tensors[0]["values"], tensors[0]["indices"].long(), about[0]["n_features"])
    assert about[0]["positions"] == module.clip.n_positions
    assert about[0]["step"] == 12
    data = open_run(run)
    batch = next(iter(data.datamodule.eval_dataloader("test", batch_size=32)))
    assert batch["key"] == about[0]["keys"]
    torch.testing.assert_close(tensors[0]["embeddings"], module.clip.encode_image(batch["image"]))
    expected = module.transcoder.encode(module.clip.capture(batch["image"]).x).dense()
    torch.testing.assert_close(found.dense(), expected)


def test_names_of_checkpoints_outside_a_fit(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = run / "checkpoints"
    assert named_checkpoint("last", run.parent) == checkpoints / "last.ckpt"
    assert named_checkpoint("best", run.parent, 0) == checkpoints / "best-step12.ckpt"
    (tmp_path / "version_4" / "checkpoints").mkdir(parents=True)
    for name in ("last.ckpt", "best-step12.ckpt"):
        shutil.copy(checkpoints / name, tmp_path / "version_4" / "checkpoints")
    shutil.copy(checkpoints / "last.ckpt", tmp_path / "version_4" / "checkpoints" / "best-step6.ckpt")
    assert named_checkpoint("best", tmp_path).name == "best-step12.ckpt"
    with pytest.raises(UserError, match="holds no run with a checkpoint"):
        named_checkpoint("best", tmp_path / "nothing")
    for words, message in (
        (["--name=nothing", "--version=3", "--ckpt_path=best"], "has no single best checkpoint (none)"),
        ([f"--ckpt_path={tmp_path / 'lost.ckpt'}"], "lost.ckpt: it does not exist"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["validate", "--run", str(run), *words])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_the_checkpoint_holds_no_clip_weight(run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(key.startswith(("transcoder.", "tokens_since_fired")) for key in checkpoint["state_dict"])
    n_moments = len(checkpoint["optimizer_states"][0]["state"])
    module = cl.CLTModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    assert n_moments == len(list(module.transcoder.parameters())) == len(list(module.parameters()))


def test_a_checkpoint_of_another_format_is_refused(run: Path, tmp_path: Path) -> None:
    """Its weights would be read in other units."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del content["format"]
    torch.save(content, tmp_path / "older.ckpt")
    with pytest.raises(UserError, match=r"older\.ckpt: format 1, this version reads 2.*from_pretrained"):
        cl.CLTModule.load_from_checkpoint(tmp_path / "older.ckpt")
    with pytest.raises(UserError, match="format 1, this version reads 2"):
        cl.CLTModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt").on_load_checkpoint(content)


def test_from_pretrained_gives_the_codes_of_the_checkpoint(run: Path) -> None:
    module = cl.CLTModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    exported = cl.CrossLayerTranscoder.from_pretrained(run / "transcoder")
    x = module.clip.capture(torch.randn(3, 3, module.clip.image_size, module.clip.image_size)).x
    assert torch.equal(module.transcoder.encode(x).dense(), exported.encode(x).dense())


def test_two_processes_train_and_validate_every_sample_once(run: Path, demo_tars: Path, tmp_path: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "clt_lightning"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    fit = subprocess.run(
        [*command, "fit", *options(demo_tars, tmp_path, *two)], env=env, capture_output=True, text=True, timeout=300
    )
    assert fit.returncode == 0, fit.stderr[-3000:]
    for noise in ("broadcast_buffers", "LeafSpec", "srun", "litlogger", "litmodels"):
        assert noise not in fit.stderr + fit.stdout
    folder = tmp_path / "quickstart" / "version_0"
    together = results(folder, "val")
    # the same weights evaluated by one process: every sample counted once gives the same sums
    checkpoint = f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
    main(["validate", *options(demo_tars, tmp_path, "--name=alone"), checkpoint])
    alone = results(tmp_path / "alone" / "version_0", "val")
    assert together.keys() == alone.keys()
    for key, value in alone.items():
        assert together[key] == pytest.approx(value, rel=2e-5, abs=1e-6, nan_ok=True), key


ACTIVATIONS = CONFIG.parent / "activation"
FEATURES_ALONE = "--model.transcoder.skip=false"  # the linear path would learn though no feature did


@pytest.mark.parametrize(
    ("factor", "more"),
    [
        (0.6, ["--trainer.precision=bf16-mixed", FEATURES_ALONE]),
        (0.6, ["--model.tokens.per_image=7", "--model.tokens.buffer=300", FEATURES_ALONE]),
        (0.6, ["--config", str(ACTIVATIONS / "jumprelu.yaml"), FEATURES_ALONE]),
        (
            0.6,
            ["--config", str(ACTIVATIONS / "batch_topk.yaml"), "--model.transcoder.topology=per_layer", FEATURES_ALONE],
        ),
        (0.6, ["--model.transcoder.topology=sae", FEATURES_ALONE]),
        (0.6, ["--model.loss.cascade={embedding: 1.0, reconstruction: 0.3, images: 4, start: 0.5}", FEATURES_ALONE]),
        (0.4, ["--model.transcoder.skip=true", "--model.optimizer.class_path=torch.optim.Adam", "--trainer.devices=1"]),
    ],
    ids=["bf16", "buffer", "jumprelu", "batch_topk-per_layer", "sae", "cascade", "skip-adam"],
)
def test_variants_train(factor: float, more: list[str], demo_tars: Path, tmp_path: Path) -> None:
    """Held out, each leaves less than `factor` of what it left at its start (with lr 0: 0.96)."""
    main(["fit", *options(demo_tars, tmp_path, "--trainer.log_every_n_steps=1", *more)])
    run = tmp_path / "quickstart" / "version_0"
    losses, found = reconstruction_losses(run), results(run, "val")
    assert len(losses) == 12
    assert 0 < losses[-1] < factor * losses[0]
    assert 0 < found["fvu/all"] < factor * losses[0]
    assert found["l0/all"] > 0


def test_a_set_with_a_training_split_alone(demo_tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unlabelled images, no class names, nothing to validate on: it trains, and says what it leaves out."""
    root = tmp_path / "images"
    (root / "train").mkdir(parents=True)
    shutil.copy(demo_tars / "train" / "0.tar", root / "train" / "0.tar")
    (root / "train" / "nshards.txt").write_text("1")
    overlay = CONFIG.parent / "data" / "webimages.yaml"
    data = [f"--data.init_args.root={root}", "--data.init_args.batch_size=16", "--data.init_args.num_workers=0"]
    short = ["--trainer.max_steps=3", "--trainer.enable_progress_bar=false", "--model.transcoder.n_features=96"]
    main(["fit", "--config", str(CONFIG), "--config", str(overlay), *data, *short, f"--runs_dir={tmp_path}"])
    assert (tmp_path / "quickstart" / "version_0" / "transcoder" / "model.safetensors").is_file()


def test_the_shipped_recipe_of_the_large_models_trains(demo_tars: Path, tmp_path: Path) -> None:
    """vitb32.yaml (bf16-mixed, fused AdamW, clipping, ddp) on the demo's CLIP for 32 steps, its warm-up cut to 4."""
    config = str(CONFIG.parent / "vitb32.yaml")
    overlay = str(CONFIG.parent / "data" / "webimages.yaml")
    small = ["--model.backbone.pretrained=demo", "--model.transcoder.n_features=96", "--zero_shot.windows=['0-']"]
    data = [f"--data.init_args.root={demo_tars}", "--data.init_args.batch_size=16", "--data.init_args.num_workers=0"]
    trainer = ["--trainer.max_steps=32", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    short = ["--model.schedule.warmup_steps=4", "--trainer.log_every_n_steps=1"]
    main(["fit", "--config", config, "--config", overlay, *small, *data, *trainer, *short, f"--runs_dir={tmp_path}"])
    run = tmp_path / "vitb32" / "version_0"
    start = reconstruction_losses(run)[0]
    assert results(run, "val")["fvu/all"] < 0.85 * start  # with lr 0: 0.967
