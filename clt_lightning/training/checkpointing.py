"""What a checkpoint holds beside the weights, and whether one fits a run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch.distributed as dist

from clt_lightning.backbone.make import differences, make_backbone
from clt_lightning.core.errors import UserError
from clt_lightning.runs.checkpoint_io import read_checkpoint
from clt_lightning.training.attention.config import AttentionConfig
from clt_lightning.training.buffer import ActivationBuffer
from clt_lightning.training.proximal import Proximal
from clt_lightning.training.settings import LossConfig, TranscoderConfig, from_plain, to_plain

#: Of what is in a checkpoint, and in which units; 2: `b_dec` in scaled units
FORMAT = 2


class Checkpointing(Proximal):
    """The hooks of Lightning for checkpoints."""

    buffer: ActivationBuffer | None
    batches_seen: int

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        strict: bool = True,
        trust: bool = False,
        **arguments: Any,
    ) -> Self:
        """The module of a checkpoint file, with the CLIP that it was trained on.

        Unlike Lightning's, it takes files alone and runs nothing that a file names.

        Args:
            checkpoint_path: a checkpoint of fit.
            map_location: as in `torch.load`.
            strict: whether the weights must be those of such a module, name by name.
            trust: whether classes of other packages that the checkpoint names (a backbone, an activation, a term of
                the loss) may be imported, and their code run. Those that you have imported yourself need no trust.
            **arguments: of the module, in the place of the checkpoint's.

        Raises:
            UserError: no such file, a damaged one, or one of another kind.
        """
        content = read_checkpoint(checkpoint_path, map_location=map_location or "cpu", mmap=False)
        stored = content.get("hyper_parameters")
        if not isinstance(stored, dict) or "state_dict" not in content:
            raise UserError(f"{checkpoint_path} is no checkpoint of fit: it has no hyper_parameters and state_dict")
        check_format(content, str(checkpoint_path))
        known = inspect.signature(cls.__init__).parameters
        if trust and "backbone" not in arguments:
            stored = stored | {"backbone": make_backbone(stored.get("backbone"), trusted=True)}
        for key, kind in (("transcoder", TranscoderConfig), ("attention", AttentionConfig), ("loss", LossConfig)):
            if key in stored:
                stored = stored | {key: from_plain(kind, stored[key], trusted=trust)}
        module = cls(**{key: value for key, value in (stored | arguments).items() if key in known})
        module.load_state_dict(content["state_dict"], strict=strict)
        return module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["format"] = FORMAT
        checkpoint["batches_seen"] = self.batches_seen
        if self.buffer is not None:
            checkpoint["activation_buffer"] = self._gather(self.buffer.state_dict())
        priors = self._priors_state()
        if priors:
            checkpoint["priors"] = priors

    def check_form(self, checkpoint: dict[str, Any]) -> None:
        """Whether a checkpoint's weights are those of such a transcoder on such a CLIP.

        Raises:
            UserError: they are not; the message names the key and both values.
        """
        theirs = checkpoint.get("hyper_parameters", {})
        for key, own, other in _form_keys(dict(self.hparams), theirs):
            if own != other:
                raise UserError(
                    f"the checkpoint was trained with model.{key}={other!r}, the config says {own!r}: go on with the "
                    "checkpoint's value, or start a new run without --ckpt_path"
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_format(checkpoint, "the checkpoint")
        self.check_form(checkpoint)
        self.batches_seen = checkpoint.get("batches_seen", 0)
        self._load_priors(checkpoint.get("priors", {}))
        if self.buffer is not None and "activation_buffer" in checkpoint:
            states = checkpoint["activation_buffer"]
            rank = self._data_place()[0]
            if rank < len(states):
                self.buffer.load_state_dict(states[rank], self.device)

    def _gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        if self.trainer.world_size == 1:
            return [state]
        states: list[Any] = [None] * self.trainer.world_size
        dist.all_gather_object(states, state)
        return states[:: self.trainer.world_size // self._data_place()[1]]  # one of each batch


def check_format(checkpoint: dict[str, Any], name: str) -> None:
    """Whether the weights of a checkpoint mean what they mean here.

    Raises:
        UserError: another version wrote it.
    """
    found = checkpoint.get("format", 1)
    if found != FORMAT:
        raise UserError(
            f"{name}: format {found}, this version reads {FORMAT}: another version of clt_lightning wrote it. The "
            "trained transcoder beside it, transcoder/, is read by every version (from_pretrained); to go on with the "
            "training, use the version that began it"
        )


def _form_keys(own: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Keys that decide the shape and meaning of the weights, with the values of two sets of hyperparameters."""
    for key, (a, b) in differences(own["backbone"], theirs.get("backbone", own["backbone"])).items():
        yield f"backbone.{key}", a, b
    for key in ("n_features", "topology", "skip", "sites", "normalize"):
        a, b = own["transcoder"][key], theirs.get("transcoder", {}).get(key, own["transcoder"][key])
        yield f"transcoder.{key}", a, b
    mine, other = own["attention"], to_plain(AttentionConfig()) | theirs.get("attention", {})
    if mine["n_features"] or other["n_features"]:
        for key in ("kind", "site", "n_features", "d_qk", "n_heads"):
            yield f"attention.{key}", mine[key], other[key]
        yield "attention.activation.class_path", mine["activation"]["class_path"], other["activation"]["class_path"]
    a = own["transcoder"]["activation"]["class_path"]
    b = theirs.get("transcoder", {}).get("activation", {}).get("class_path", a)
    yield "transcoder.activation.class_path", a, b
