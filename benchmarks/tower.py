"""How often an evaluation runs the tower: calls of its blocks, and images that go through them.

`python -m clt_lightning test --run RUN --trainer.callbacks+=benchmarks.tower.BlockCalls` prints it at the end; the same
for `validate`. The price of `fit` and of the text tower is not in it.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor


class BlockCalls(pl.Callback):
    """Counts by hooks on the backbone's blocks while a trainer validates or tests.

    Attributes:
        calls: by block, of the current or last stage.
        images: images that went through a block, by block.
    """

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.images: list[int] = []
        self._handles: list[Any] = []

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        clip = pl_module.clip
        self.calls, self.images = [0] * clip.n_layers, [0] * clip.n_layers

        def count(layer: int, inputs: tuple[Tensor, ...]) -> None:
            self.calls[layer] += 1
            self.images[layer] += inputs[0].shape[0 if clip.batch_first else 1]

        self._handles = [
            block.register_forward_pre_hook(lambda module, inputs, layer=layer: count(layer, inputs))
            for layer, block in enumerate(clip.blocks)
        ]

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if stage != "fit":
            trainer.print(
                f"{stage}: {sum(self.calls):,} calls of tower blocks ({', '.join(map(str, self.calls))} by block), "
                f"{sum(self.images):,} images through blocks"
            )
