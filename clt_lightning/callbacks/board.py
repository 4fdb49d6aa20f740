"""TensorBoard's own pages: an arrangement of the scalars, and hyper-parameters with the numbers they led to."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from clt_lightning.callbacks.figures import tensorboard
from clt_lightning.callbacks.place import RunLogger

_LONGEST = 200


class Board(pl.Callback):
    """Arranges TensorBoard: custom scalars by theme, and a row of hyper-parameters and results for every run.

    Open `tensorboard --logdir runs`: CUSTOM SCALARS holds training, reconstruction (by token set and by layer) and
    zero-shot accuracy; HPARAMS compares runs by their last validation.
    """

    def __init__(self) -> None:
        self._arranged = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._arranged = False
        # before Lightning logs the settings of its own accord, of which TensorBoard takes the first; the run's own
        # logger waits with everything until the run has begun
        if not isinstance(tensorboard(trainer), RunLogger):
            self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if self._arranged:
            return
        self._arranged = True  # not sooner: a start that fails writes nothing
        logger = tensorboard(trainer)
        if logger is None or not trainer.is_global_zero:
            return
        logger.experiment.add_custom_scalars(layout())
        from torch.utils.tensorboard.summary import hparams

        # The names of the results must be said at the first call; TensorBoard then takes each tag's last value, so
        # nothing made-up is ever written under it.
        results = dict.fromkeys(result_tags(pl_module.clip.n_layers), 0.0)
        writer = logger.experiment._get_file_writer()
        for summary in hparams(hyper_parameters(trainer, pl_module), results):
            writer.add_summary(summary)


def result_tags(n_layers: int) -> list[str]:
    """The numbers by which runs are compared."""
    return [
        "val/fvu/all",
        "val/fvu/cls",
        "val/fvu/patch",
        "val/l0/all",
        "val/dead/all",
        "val/zero_shot/original",
        f"val/zero_shot/replaced/0-{n_layers - 1}/all",
    ]


def layout() -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's custom scalar layout; tags are regular expressions."""

    def lines(*tags: str) -> list[Any]:
        return ["Multiline", list(tags)]

    return {
        "training": {
            "loss and its parts": lines("train/loss$", "train/loss/.*"),
            "L0": lines("train/l0$"),
            "tokens a second": lines("train/tokens_per_second"),
        },
        "reconstruction": {
            "FVU, mean over layers": lines(r"val/fvu/(cls|patch|all)$"),
            **{f"FVU by layer, {t}": lines(rf"val/fvu/{t}/layer_\d+") for t in ("cls", "patch", "all")},
            "cosine, mean over layers": lines(r"val/cosine/(cls|patch|all)$"),
            "dead share by layer": lines(r"val/dead/all/layer_\d+"),
        },
        "replacement": {
            "zero-shot top-1": lines(
                "val/zero_shot/original$", "val/zero_shot/replaced/.*", "val/zero_shot/mean_ablated$"
            ),
            "logit KL": lines("val/zero_shot/kl/.*"),
        },
    }


def hyper_parameters(trainer: pl.Trainer, pl_module: Any) -> dict[str, bool | int | float | str]:
    """What distinguishes a run, flat and in the four types that TensorBoard takes."""
    found: dict[str, bool | int | float | str] = {}
    _flatten(dict(pl_module.hparams), "", found)
    _flatten({"data": _data(getattr(trainer, "datamodule", None))}, "", found)
    found["trainer/max_steps"] = trainer.max_steps
    found["trainer/processes"] = trainer.world_size
    found["trainer/precision"] = str(trainer.precision)
    if trainer.optimizers:
        optimizer = trainer.optimizers[0]
        found["optimizer"] = type(optimizer).__name__
        found["optimizer/lr"] = float(optimizer.defaults["lr"])
    return found


def _data(datamodule: Any) -> dict[str, Any]:
    if datamodule is None:
        return {}
    return {"class": type(datamodule).__name__, "batch_size": getattr(datamodule, "batch_size", None)}


def _flatten(value: Any, name: str, into: dict[str, bool | int | float | str]) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _flatten(part, f"{name}/{key}" if name else str(key), into)
    elif isinstance(value, bool | int | float | str):
        into[name] = value
    elif value is not None:
        into[name] = str(value)[:_LONGEST]
