"""What is trained or evaluated, and on what, in a few lines at the start."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.trainer.states import TrainerFn

from clt_lightning.callbacks.base import weights_at
from clt_lightning.callbacks.progress import total_steps
from clt_lightning.core.people import count
from clt_lightning.transcoder import CrossLayerTranscoder

_WORK = {
    TrainerFn.FITTING: "training",
    TrainerFn.VALIDATING: "validation",
    TrainerFn.TESTING: "test",
    TrainerFn.PREDICTING: "prediction",
}


class Summary(ModelSummary):
    """Takes the place of Lightning's table, which counts 0 parameters in a frozen backbone.

    It prints on standard output: backbone, transcoder, and how long and on what device the run goes; where weights are
    evaluated, those.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing yet: it is not known from which step the run goes on."""

    def on_train_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        images = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        steps = total_steps(trainer)
        words = [f"{steps:,} steps" if steps is not None else "no limit of steps"]
        if isinstance(images, int):
            told = getattr(trainer.strategy, "distributed_sampler_kwargs", None)
            batches = int(told["num_replicas"]) if told else 1
            words.append(f"of {images * batches * trainer.accumulate_grad_batches:,} images")
        if trainer.global_step:
            words.append(f"from step {trainer.global_step:,} on")
        self._print(trainer, pl_module, " ".join(words))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._evaluated(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluated(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluated(trainer, pl_module)

    def _evaluated(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        weights = f"weights of step {weights_at(trainer)[0]:,}"
        if not trainer.ckpt_path and not trainer.global_step:
            weights = "untrained weights (no --run, no --ckpt_path)"
        self._print(trainer, pl_module, weights)

    def _print(self, trainer: pl.Trainer, pl_module: Any, work: str) -> None:
        if not trainer.is_global_zero:
            return
        lines = {
            "backbone": backbone_line(pl_module.clip),
            "transcoder": transcoder_line(pl_module.transcoder),
            **({} if pl_module.attention is None else {"attention": attention_line(pl_module.attention)}),
            _WORK.get(trainer.state.fn or TrainerFn.FITTING, "run"): f"{work}, {device_line(trainer)}",
        }
        trainer.print("\n".join(f"{name + ':':<12}{text}" for name, text in lines.items()), flush=True)


def backbone_line(clip: Any) -> str:
    """The frozen backbone: name, size, parameters."""
    weights = "random weights" if clip.pretrained is None else str(clip.pretrained)
    name = clip.name if clip.pretrained == "demo" else f"{clip.name} ({weights})"
    return f"{name}, {clip.n_layers} blocks of width {clip.d_model}, {_parameters(clip.model)}, frozen"


def transcoder_line(transcoder: Any) -> str:
    """The transcoder: topology, features, activation, parameters."""
    activation = transcoder.activation
    k = getattr(activation, "k", None)
    words = [
        transcoder.topology,
        f"{transcoder.n_layers} x {transcoder.n_features:,} features",
        type(activation).__name__ + (f" {k:g}" if isinstance(k, int | float) else ""),
        *(["skip"] if transcoder.skip else []),
        _parameters(transcoder),
    ]
    return ", ".join(words)


def attention_line(attention: Any) -> str:
    """Sparse attention: units, activation, whose patterns, parameters; or an autoencoder of attention."""
    if isinstance(attention, CrossLayerTranscoder):
        return f"{transcoder_line(attention)} of {attention.sites.write}"
    k = getattr(attention.activation, "k", None)
    whose = "of their own" if attention.d_qk is not None else "of the model"
    words = [
        f"{attention.n_layers} x {attention.n_features:,} units",
        type(attention.activation).__name__ + (f" {k:g}" if isinstance(k, int | float) else ""),
        f"{attention.n_heads} patterns {whose}",
        _parameters(attention),
    ]
    return ", ".join(words)


def device_line(trainer: pl.Trainer) -> str:
    """Where it runs, and in what precision."""
    device, n = trainer.strategy.root_device, trainer.world_size
    if device.type == "cpu":
        threads = torch.get_num_threads()
        where = f"the CPU ({f'{n} processes, ' if n > 1 else ''}{threads} thread{'s' if threads > 1 else ''})"
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        where = f"{n} x {name}"
    return f"on {where} in {trainer.precision}"


def _parameters(module: torch.nn.Module) -> str:
    return f"{count(sum(p.numel() for p in module.parameters()))} parameters"
