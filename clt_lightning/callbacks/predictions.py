"""What `predict` writes: embeddings and sparse codes of every image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import safetensors.torch
import torch
from lightning.pytorch.utilities import rank_zero_info

from clt_lightning.callbacks.base import run_folder, say_not_written, weights_at
from clt_lightning.core.files import whole_file, write_json


# Lightning's BasePredictionWriter would warn that batches read from tars have no sample indices; they have keys.
class Predictions(pl.Callback):
    """On `predict`, writes `<run>/predictions/<split>/<rank>-<batch>.safetensors` and a `.json` of the same name.

    The tensors: `embeddings (images, embed_dim)`, unit norm; `values (layers, tokens, k)` and `indices (layers, tokens,
    k) int32`, the codes; a value of 0 is padding. Tokens are image-major: token `n * positions + p`, position 0 is
    [CLS]. The JSON: `keys` of the images in their order, `positions`, `n_features` and `step` of the weights. What an
    earlier prediction has left in the folder is removed first.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._step = 0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        folder = run_folder(trainer)
        if folder is None:
            say_not_written(trainer, "predictions/")
            return
        loader = trainer.predict_dataloaders
        self._folder = folder / "predictions" / str(getattr(loader, "split", "predict"))
        self._step = weights_at(trainer)[0]
        if trainer.is_global_zero and self._folder.is_dir():
            for path in self._folder.iterdir():
                if re.fullmatch(r"\d+-\d+\.(safetensors|json)", path.name):
                    path.unlink()  # other sizes of batches would leave a mixture
        trainer.strategy.barrier("earlier predictions removed")

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._folder is None:
            return
        indices = outputs["indices"].to(torch.int32)
        tensors = {"embeddings": outputs["embeddings"], "values": outputs["values"], "indices": indices}
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{trainer.global_rank}-{batch_idx:06d}.safetensors"
        with whole_file(path) as temporary:
            safetensors.torch.save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary)
        keys = list(outputs["key"])
        about = {"positions": indices.shape[1] // len(keys), "n_features": pl_module.transcoder.n_features}
        write_json(path.with_suffix(".json"), {"keys": keys, **about, "step": self._step})

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._folder is not None:
            rank_zero_info(f"predictions written to {self._folder}")
            self._folder = None
