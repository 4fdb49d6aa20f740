"""config.yaml, written once a run has begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import SaveConfigCallback

from clt_lightning.core.files import whole_file


class SaveConfig(SaveConfigCallback):
    """Lightning's callback, which writes the config into the run's folder: whole, and when it is told to.

    Attributes:
        waits: whether `write` is called later; otherwise the config is written in the set-up.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waits = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not self.waits:
            super().setup(trainer, pl_module, stage)

    def write(self, folder: Path) -> None:
        """Writes `<folder>/config.yaml`."""
        with whole_file(folder / self.config_filename) as temporary:
            self.parser.save(self.config, str(temporary), skip_none=False, overwrite=True, multifile=False)
