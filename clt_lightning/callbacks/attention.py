"""How well attention is rebuilt by what is trained alone (`AttentionModule`), on validation."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from clt_lightning.callbacks.measuring import log_all
from clt_lightning.metrics import L0, FVUAndMSE


class AttentionReconstruction(pl.Callback):
    """FVU of `attn_out` and L0 of every layer over the validation split.

    Logs `val/fvu` and `val/l0`, means over layers, and each by layer, `val/fvu/layer_<ll>`. A module that is trained
    beside a transcoder (`CLTModule`) is measured by `Reconstruction`.
    """

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        attention = pl_module.attention
        self._errors = FVUAndMSE(attention.n_layers, pl_module.clip.d_model).to(pl_module.device)
        self._l0 = L0(attention.n_layers).to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        sites, out = outputs["sites"], outputs["out"]
        self._errors.update(sites.y.flatten(1, 2), out.y_hat.flatten(1, 2))
        self._l0.update(out.codes.l0())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        rows = {"fvu": self._errors.compute()[0], "l0": self._l0.compute()}
        numbers = {name: float(row.mean()) for name, row in rows.items()}
        numbers |= {f"{name}/layer_{i:02d}": float(v) for name, row in rows.items() for i, v in enumerate(row)}
        if not trainer.sanity_checking:
            log_all(pl_module, "val", numbers)
