"""Every flag of Lightning's Trainer that says which batches are read, with a real Trainer on our loaders.

Lightning implements some of them by reaching into a torch DataLoader, which ours are not."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.data.sets.base import WebImages
from clt_lightning.training.module import CLTModule
from clt_lightning.training.settings import ScheduleConfig, TokensConfig, TranscoderConfig
from clt_lightning.transcoder import TopK

from ..world import images, write_root

# Lightning's advice on checkpoint folders and logging intervals
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Seen = list[tuple[int, tuple[str, ...], bytes]]


class Recorder(pl.LightningModule):
    """Notes the epoch, the keys and the pixels of every batch, by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[str, Seen] = {"train": [], "val": [], "test": [], "predict": []}

    def _note(self, stage: str, batch: dict[str, Any]) -> None:
        entry = (self.current_epoch, tuple(batch["key"]), batch["image"].numpy().tobytes())
        self.seen[stage].append(entry)

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        self._note("train", batch)
        result: torch.Tensor = self.layer(batch["image"].mean((1, 2, 3))[:, None]).mean()
        return result

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        self._note("val", batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._note("test", batch)

    def predict_step(self, batch: dict[str, Any], _: int) -> int:
        self._note("predict", batch)
        return len(batch["key"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def epochs(self, stage: str = "train") -> list[list[tuple[tuple[str, ...], bytes]]]:
        """The batches of each epoch, in order."""
        found: dict[int, list[tuple[tuple[str, ...], bytes]]] = {}
        for epoch, keys, pixels in self.seen[stage]:
            found.setdefault(epoch, []).append((keys, pixels))
        return [found[epoch] for epoch in sorted(found)]


def make(root: Path, **options: object) -> WebImages:
    """20 training images in 5 batches, 9 of validation in 3."""
    if not root.exists():
        write_root(root, train=[11, 9], test=[9])
        (root / "test").rename(root / "val")
    return images(root, **({"shuffle": 7, "augment": "flip"} | options))


def trainer(folder: Path, **flags: Any) -> pl.Trainer:
    plain: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0, "max_epochs": 3}
    for name in ("enable_progress_bar", "enable_model_summary"):
        plain[name] = False
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, **(plain | flags))


def fit(folder: Path, *, ckpt_path: Path | None = None, options: dict[str, object] | None = None, **flags: Any) -> Any:
    model = Recorder()
    trainer(folder, **flags).fit(model, make(folder / "data", **(options or {})), ckpt_path=ckpt_path)
    return model


def keys(batches: list[tuple[tuple[str, ...], bytes]]) -> list[str]:
    return [key for names, _ in batches for key in names]


@pytest.mark.parametrize(("asked", "batches", "workers"), [(2, 2, 0), (2, 2, 2), (0.4, 2, 0), (1, 1, 0), (99, 5, 0)])
def test_overfit_batches_gives_the_same_batches_in_every_epoch(
    tmp_path: Path, asked: float, batches: int, workers: int
) -> None:
    model = fit(tmp_path, overfit_batches=asked, options={"num_workers": workers})
    first, *others = model.epochs()
    assert len(first) == batches
    assert others == [first] * 2  # the pixels too: augmentation is drawn anew for each epoch otherwise
    assert len(set(keys(first))) == 4 * batches
    assert len(model.epochs("val")[0]) == (min(batches, 3) if isinstance(asked, int) else int(3 * asked))
    assert model.epochs("val")[0] == model.epochs("val")[1]


def test_without_overfit_batches_epochs_differ(tmp_path: Path) -> None:
    first, second, third = fit(tmp_path).epochs()
    assert first != second != third
    assert sorted(keys(first)) == sorted(keys(second)) == sorted(keys(third))


def test_overfit_batches_beside_other_flags(tmp_path: Path) -> None:
    reference = fit(tmp_path, overfit_batches=2).epochs()
    assert fit(tmp_path, overfit_batches=2, reload_dataloaders_every_n_epochs=1).epochs() == reference
    assert fit(tmp_path, overfit_batches=2, accumulate_grad_batches=2).epochs() == reference
    assert fit(tmp_path, overfit_batches=2, max_epochs=-1, max_steps=6).epochs() == reference
    assert fit(tmp_path, overfit_batches=2, fast_dev_run=2).epochs() == reference[:1]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_overfitting_goes_on_where_it_stopped(tmp_path: Path, step: int) -> None:
    saved = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    flags: dict[str, Any] = {"overfit_batches": 2, "max_epochs": -1, "max_steps": 5, "enable_checkpointing": True}
    whole = fit(tmp_path, callbacks=[saved], **flags).seen["train"]
    resumed = fit(tmp_path, ckpt_path=tmp_path / f"step={step}.ckpt", **flags).seen["train"]
    assert resumed == whole[step:]


def test_the_statistics_of_a_run_that_overfits_come_from_its_batches(tmp_path: Path) -> None:
    # the demo CLIP's normalisation wants 740 tokens of 37 an image; two batches of 4 images have 296
    model = CLTModule(
        backbone=FrozenCLIP(pretrained="demo"),
        transcoder=TranscoderConfig(n_features=48, activation=TopK(4)),
        tokens=TokensConfig(statistics=740),
        schedule=ScheduleConfig(decay="none"),
        seed=0,
    )
    seen: list[int] = []
    capture = model.clip.capture

    def counted(images: Any, *given: Any, **named: Any) -> Any:
        seen.append(len(images))
        return capture(images, *given, **named)

    model.clip.capture = counted  # type: ignore[method-assign]
    data = make(tmp_path / "data")
    data.transform = None
    trainer(tmp_path, overfit_batches=2, max_epochs=1, limit_val_batches=0).fit(model, data)
    assert seen == [4] * 6  # two for the statistics, two steps, and two of them again at the end, to validate


def test_a_loader_that_is_given_without_its_module_follows_the_trainer(tmp_path: Path) -> None:
    model = CLTModule(
        backbone=FrozenCLIP(pretrained="demo"),
        transcoder=TranscoderConfig(n_features=48, activation=TopK(4)),
        schedule=ScheduleConfig(decay="none"),
        seed=0,
    )
    seen: list[tuple[str, ...]] = []
    step = model.training_step

    def noted(batch: dict[str, Any], batch_idx: int) -> Any:
        seen.append(tuple(batch["key"]))
        return step(batch, batch_idx)

    model.training_step = noted  # type: ignore[method-assign]
    data = make(tmp_path / "data")
    data.transform = model.clip.preprocess
    trainer(tmp_path, overfit_batches=2).fit(model, data.train_dataloader())
    assert len(seen) == 6
    assert seen[:2] == seen[2:4] == seen[4:]
    assert len(set(seen)) == 2


@pytest.mark.parametrize("limit", [3, 0.6])
def test_limits_of_training_and_validation(tmp_path: Path, limit: float) -> None:
    model = fit(tmp_path, limit_train_batches=limit, limit_val_batches=2)
    assert [len(epoch) for epoch in model.epochs()] == [3, 3, 3]
    assert [epoch[:3] for epoch in fit(tmp_path).epochs()] == model.epochs()
    assert [len(epoch) for epoch in model.epochs("val")] == [2, 2, 2]
    assert model.epochs("val")[0] == fit(tmp_path).epochs("val")[0][:2]


def test_limits_of_zero_read_nothing(tmp_path: Path) -> None:
    assert fit(tmp_path, limit_val_batches=0).seen["val"] == []
    assert fit(tmp_path, limit_train_batches=0).seen["train"] == []


def test_limits_of_test_and_predict(tmp_path: Path) -> None:
    model, data = Recorder(), make(tmp_path / "data")
    runs = trainer(tmp_path, limit_test_batches=2, limit_predict_batches=0.34)
    runs.test(model, data, verbose=False)
    assert [names for _, names, _ in model.seen["test"]] == [
        tuple(f"0/s{i:07d}" for i in part) for part in (range(4), range(4, 8))
    ]
    assert runs.predict(model, data) == [4]


@pytest.mark.parametrize("every", [1, 2])
def test_reloading_the_loaders_changes_no_epoch(tmp_path: Path, every: int) -> None:
    reference = fit(tmp_path)
    model = fit(tmp_path, reload_dataloaders_every_n_epochs=every)
    assert model.seen == reference.seen


@pytest.mark.parametrize("step", [3, 5, 8])
def test_reloading_and_resuming(tmp_path: Path, step: int) -> None:
    saved = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    flags: dict[str, Any] = {"reload_dataloaders_every_n_epochs": 2, "limit_val_batches": 0}
    flags |= {"max_epochs": -1, "max_steps": 12, "enable_checkpointing": True}
    whole = fit(tmp_path, callbacks=[saved], **flags).seen["train"]
    resumed = fit(tmp_path, ckpt_path=tmp_path / f"step={step}.ckpt", **flags).seen["train"]
    assert [entry[1:] for entry in resumed] == [entry[1:] for entry in whole[step:]]


@pytest.mark.parametrize(
    ("flags", "validations"),
    [
        ({"val_check_interval": 0.4}, 6),  # after batches 2 and 4 of each epoch of 5
        ({"val_check_interval": 1.0}, 3),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, 3),  # after batches 4, 8 and 12 of 15
        ({"check_val_every_n_epoch": 2}, 1),
        ({"val_check_interval": timedelta(seconds=0)}, 15),
        ({"val_check_interval": 0.4, "limit_train_batches": 0.8}, 12),
    ],
)
def test_when_validation_runs(tmp_path: Path, flags: dict[str, Any], validations: int) -> None:
    assert len(fit(tmp_path, **flags).seen["val"]) == 3 * validations


def test_other_flags_leave_the_batches_alone(tmp_path: Path) -> None:
    reference = fit(tmp_path).epochs()
    bare = {"barebones": True, "num_sanity_val_steps": None, "logger": None, "enable_checkpointing": None}
    bare |= {"enable_progress_bar": None, "enable_model_summary": None}
    others: list[dict[str, Any]] = [
        {"use_distributed_sampler": False},
        {"inference_mode": False},
        {"num_sanity_val_steps": -1},
        {"sync_batchnorm": True},
        {"detect_anomaly": True},
        {"profiler": "simple", "logger": CSVLogger(tmp_path)},
        bare,
    ]
    for flags in others:
        assert fit(tmp_path, **flags).epochs() == reference, flags


def test_fast_dev_run_reads_the_first_batches(tmp_path: Path) -> None:
    reference, model = fit(tmp_path), fit(tmp_path, fast_dev_run=2)
    assert model.epochs() == [reference.epochs()[0][:2]]
    assert model.epochs("val") == [reference.epochs("val")[0][:2]]


def test_max_time_stops_in_an_epoch(tmp_path: Path) -> None:
    model = fit(tmp_path, max_time=timedelta(seconds=0), max_epochs=-1)
    assert model.seen["train"] == fit(tmp_path).seen["train"][: len(model.seen["train"])]
    assert len(model.seen["train"]) < 15


def test_a_search_for_the_batch_size_changes_the_loaders(tmp_path: Path) -> None:
    finder = BatchSizeFinder(mode="power", steps_per_trial=1, init_val=3, max_trials=2)
    model, data = Recorder(), make(tmp_path / "data")
    trainer(tmp_path, callbacks=[finder], enable_checkpointing=True, max_epochs=1).fit(model, data)
    assert data.batch_size == 6
    assert [len(names) for _, names, _ in model.seen["train"][-2:]] == [6, 6]


def test_lightning_warns_of_none_of_this(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    logging.getLogger("lightning").setLevel(logging.INFO)
    runs, data = trainer(tmp_path, overfit_batches=2, reload_dataloaders_every_n_epochs=1), make(tmp_path / "data")
    runs.fit(Recorder(), data)
    runs.predict(Recorder(), data)
    said = " ".join(str(warning.message) for warning in recwarn)
    assert "shuffl" not in said
    assert "batch indices" not in said
