"""How many features have stopped firing, while training."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


class TrainDead(pl.Callback):
    """Logs `train/dead` (mean over layers) and `train/dead/layer_<ll>` every `trainer.log_every_n_steps` steps.

    It is the share of features without an activation over the last `model.loss.auxk.dead_after_tokens` training tokens
    of all processes. The counters live in the module and in its checkpoints, so that a resumed run goes on counting.
    """

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = trainer.log_every_n_steps
        if not every or trainer.global_step == 0 or trainer.global_step % every:
            return
        threshold = pl_module.loss_config.auxk.dead_after_tokens
        dead = (pl_module.tokens_since_fired >= threshold).float().mean(1)
        pl_module.log("train/dead", dead.mean())
        pl_module.log_dict({f"train/dead/layer_{layer:02d}": share for layer, share in enumerate(dead)})
