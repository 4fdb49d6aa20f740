"""The trained transcoder as files that `from_pretrained` reads."""

from __future__ import annotations

import textwrap
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from clt_lightning.callbacks.base import run_folder, say_not_written
from clt_lightning.transcoder.files import what_maps


class ExportTranscoder(pl.Callback):
    """Writes `<run>/transcoder/` at the end of training: the final weights, scales folded in, with the CLIP that they
    belong to and the step in the config's `metadata`; and `<run>/attention/`, where sparse attention, or an autoencoder
    of it, was trained beside it. At the start it says for which other tools such a transcoder can be exported, and why
    not for the others.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if run_folder(trainer) is not None:
            rank_zero_info(textwrap.fill(what_maps(pl_module.transcoder), 80, subsequent_indent="  "))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        folder = run_folder(trainer)
        if folder is None:
            say_not_written(trainer, "transcoder/")
            return
        clt = pl_module.transcoder.whole()  # by all processes: its features may lie on several
        if trainer.is_global_zero:
            metadata = {"clip": pl_module.clip.describe(), "step": trainer.global_step}
            if pl_module.attention is not None:  # before the transcoder, whose step says that all is there
                written = pl_module.attention.save_pretrained(folder / "attention", metadata=metadata)
                rank_zero_info(f"attention written to {written}")
            written = clt.save_pretrained(folder / "transcoder", metadata=metadata)
            rank_zero_info(f"transcoder written to {written}")
        trainer.strategy.barrier("transcoder written")
