"""TensorBoard's own pages: an arrangement of the scalars, and hyper-parameters with the numbers they led to."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl

from clt_lightning.callbacks.figures import tensorboard
from clt_lightning.callbacks.place import RunLogger
from clt_lightning.callbacks.summary import backbone_line, transcoder_line
from clt_lightning.training.settings import LossConfig

_LONGEST = 200


class Board(pl.Callback):
    """Arranges TensorBoard: custom scalars by theme, a row of hyper-parameters and results for every run, and a mark
    where the cascade's terms begin.

    Open `tensorboard --logdir runs`: CUSTOM SCALARS holds training, reconstruction (by token set, and by layer with
    `figures.per_layer`) and zero-shot accuracy; HPARAMS compares runs by their last validation. `train/cascade` is the
    share of their weights that the cascade's terms have (0 before they begin), the text `marks/cascade` says at which
    step that was: from there on `train/loss` has more parts.
    """

    def __init__(self) -> None:
        self._arranged = False
        self._looked_at = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._arranged, self._looked_at = False, trainer.global_step
        # before Lightning logs the settings of its own accord, of which TensorBoard takes the first; the run's own
        # logger waits with everything until the run has begun
        if not isinstance(tensorboard(trainer), RunLogger):
            self._arrange(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if not self._arranged:
            self._arrange(trainer, pl_module)  # not sooner: a start that fails writes nothing
        if trainer.global_step > self._looked_at:
            self._looked_at = trainer.global_step
            self._follow_cascade(trainer, pl_module)

    def _arrange(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._arranged = True
        logger = tensorboard(trainer)
        if logger is None or not trainer.is_global_zero:
            return
        per_layer = not isinstance(logger, RunLogger) or logger.per_layer
        logger.experiment.add_custom_scalars(layout(per_layer))
        from torch.utils.tensorboard.summary import hparams

        # The names of the results must be said at the first call; TensorBoard then takes each tag's last value, so
        # nothing made-up is ever written under it.
        results = dict.fromkeys(result_tags(pl_module.transcoder.n_layers), 0.0)
        writer = logger.experiment._get_file_writer()
        for summary in hparams(hyper_parameters(trainer, pl_module), results):
            writer.add_summary(summary)

    def _follow_cascade(self, trainer: Any, pl_module: Any) -> None:
        """Logs the strength that the cascade's terms had in the step that has just ended."""
        cascade, step, steps = pl_module.loss_config.cascade, trainer.global_step - 1, pl_module.total_steps
        if not cascade.is_on:
            return
        strength = cascade.strength(step, steps)
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log("train/cascade", strength)
        if not strength or (step > 0 and cascade.strength(step - 1, steps)) or not trainer.is_global_zero:
            return
        text = f"the cascade's terms join the loss at step {step:,}"
        if cascade.warmup * max(steps, 0) > 1:
            text += f", in full from step {math.ceil(cascade.start * steps + cascade.warmup * steps):,} on"
        trainer.print(text, flush=True)
        logger = tensorboard(trainer)
        if logger is not None:
            logger.experiment.add_text("marks/cascade", text, step)


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


def layout(per_layer: bool = False) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's custom scalar layout; tags are regular expressions.

    Args:
        per_layer: whether there are curves of every layer.
    """

    def lines(*tags: str) -> list[Any]:
        return ["Multiline", list(tags)]

    by_layer = {
        **{f"FVU by layer, {t}": lines(rf"val/fvu/{t}/layer_\d+") for t in ("cls", "patch", "all")},
        "dead share by layer": lines(r"val/dead/all/layer_\d+"),
    }
    return {
        "training": {
            "loss and its parts": lines("train/loss$", "train/loss/.*"),
            "the cascade's share of its weight": lines("train/cascade$"),
            "L0": lines("train/l0$"),
            "tokens per second": lines("train/tokens_per_second"),
            "seconds of a step": lines("train/time/.*"),
        },
        "reconstruction": {
            "FVU, mean over layers": lines(r"val/fvu/(cls|patch|all)$"),
            "cosine, mean over layers": lines(r"val/cosine/(cls|patch|all)$"),
            "dead share, mean over layers": lines(r"val/dead/(cls|patch|all)$"),
            "who explains: features and skip": lines(r"val/share/(features|skip)$"),
            "who makes the margin": lines(r"val/share/margin/.*"),
            **(by_layer if per_layer else {}),
        },
        "replacement": {
            "zero-shot top-1": lines(
                "val/zero_shot/original$", "val/zero_shot/replaced/.*", "val/zero_shot/mean_ablated$"
            ),
            "logit KL": lines("val/zero_shot/kl/.*"),
        },
    }


def hyper_parameters(trainer: pl.Trainer, pl_module: Any) -> dict[str, bool | int | float | str]:
    """What distinguishes a run, flat and in the four types that TensorBoard takes.

    Backbone and transcoder are those that are there (settings may name an architecture that a folder or `demo` has
    overruled), and the loss has the parts that are on.
    """
    found: dict[str, bool | int | float | str] = {}
    clip, settings = pl_module.clip, dict(pl_module.hparams)
    found["backbone"], found["transcoder"] = backbone_line(clip), transcoder_line(pl_module.transcoder)
    weights = "random weights" if clip.pretrained is None else str(clip.pretrained)
    own = {"name": clip.name, "weights": weights, "precision": clip.precision}
    _flatten({**own, "layers": clip.n_layers, "d_model": clip.d_model}, "clip", found)
    _flatten(pl_module.transcoder.config(), "transcoder", found)
    found["loss"] = loss_line(pl_module.loss_config)
    _flatten(_on(settings.pop("loss")), "loss", found)
    for section in ("backbone", "transcoder", *(() if pl_module.attention is not None else ("attention",))):
        settings.pop(section)
    _flatten(settings, "", found)
    _flatten({"data": _data(getattr(trainer, "datamodule", None))}, "", found)
    found["trainer/max_steps"] = trainer.max_steps
    found["trainer/processes"] = trainer.world_size
    found["trainer/precision"] = str(trainer.precision)
    if trainer.optimizers:
        optimizer = trainer.optimizers[0]
        found["optimizer"] = type(optimizer).__name__
        found["optimizer/lr"] = float(optimizer.defaults["lr"])
    return found


def loss_line(loss: LossConfig) -> str:
    """The parts of the loss that are on, with their weights, in one line."""
    words = ["reconstruction" + ("" if loss.layer_weights is None else " (layers weighted)")]
    words += [f"{name} {part.coefficient:g}" for name, part in loss.parts().items() if part.coefficient]
    terms = {name: getattr(loss.cascade, name) for name in ("stream", "embedding", "reconstruction")}
    words += [f"cascade {name} {weight:g}" for name, weight in terms.items() if weight]
    return " + ".join(words)


def _on(loss: dict[str, Any]) -> dict[str, Any]:
    """The settings of the parts that are on."""

    def is_on(name: str, part: Any) -> bool:
        if name == "cascade":
            return any(part[weight] for weight in ("stream", "embedding", "reconstruction"))
        return not isinstance(part, dict) or bool(part["coefficient"])

    return {name: part for name, part in loss.items() if is_on(name, part)}


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
