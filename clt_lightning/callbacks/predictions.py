"""What `predict` writes: embeddings and sparse codes of every image."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import safetensors.torch
import torch
from lightning.pytorch.utilities import rank_zero_info

from clt_lightning.callbacks.base import run_folder, say_not_written, weights_at
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_errors, whole_folder, write_json
from clt_lightning.runs.folder import RunFolder


# Lightning's BasePredictionWriter would warn that batches read from tars have no sample indices; they have keys.
class Predictions(pl.Callback):
    """On `predict`, writes `<run>/predictions/<split>/<rank>-<batch>.safetensors` and a `.json` of the same name.

    The tensors: `embeddings (images, embed_dim)`, unit norm; `values (layers, tokens, k)` and `indices (layers, tokens,
    k) int32`, the codes; a value of 0 is padding. Tokens are image-major: token `n * positions + p`, position 0 is
    [CLS]. The JSON: `keys` of the images in their order, `positions`, `n_features` and `step` of the weights. The
    folder takes the place of an earlier prediction when it is complete; until then the earlier one is whole.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._draft: Path | None = None
        self._open = ExitStack()
        self._step = 0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        run = run_folder(trainer)
        if run is None:
            say_not_written(trainer, "predictions/")
            return
        loader = trainer.predict_dataloaders
        self._folder = RunFolder(run).predictions(str(getattr(loader, "split", "predict")))
        draft = self._open.enter_context(whole_folder(self._folder)) if trainer.is_global_zero else None
        self._draft = trainer.strategy.broadcast(draft)
        self._step = weights_at(trainer)[0]

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._draft is None:
            return
        indices = outputs["indices"].to(torch.int32)
        tensors = {"embeddings": outputs["embeddings"], "values": outputs["values"], "indices": indices}
        path = self._draft / f"{trainer.global_rank}-{batch_idx:06d}.safetensors"
        with disk_errors(path):
            safetensors.torch.save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
        keys = list(outputs["key"])
        about = {"positions": indices.shape[1] // len(keys), "n_features": pl_module.transcoder.n_features}
        write_json(path.with_suffix(".json"), {"keys": keys, **about, "step": self._step})

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._draft is None:
            return
        trainer.strategy.barrier("predictions written")
        self._open.close()
        rank_zero_info(f"predictions written to {self._folder}")
        self._folder = self._draft = None

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        with suppress(UserError):  # the exception is told already
            self._open.__exit__(type(exception), exception, exception.__traceback__)
