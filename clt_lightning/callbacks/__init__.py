"""Callbacks: what is measured, shown and written while a transcoder trains. Usable from YAML by class path."""

from __future__ import annotations

from clt_lightning.callbacks.board import Board
from clt_lightning.callbacks.checkpoints import Checkpoints
from clt_lightning.callbacks.dead import TrainDead
from clt_lightning.callbacks.evaluate import Evaluate
from clt_lightning.callbacks.export import ExportTranscoder
from clt_lightning.callbacks.figures import Figures
from clt_lightning.callbacks.predictions import Predictions
from clt_lightning.callbacks.progress import ProgressLine
from clt_lightning.callbacks.random_state import RandomState
from clt_lightning.callbacks.reconstruction import Reconstruction
from clt_lightning.callbacks.record import RunRecord
from clt_lightning.callbacks.requeue import Requeue
from clt_lightning.callbacks.summary import Summary
from clt_lightning.callbacks.table import Table
from clt_lightning.callbacks.throughput import Throughput
from clt_lightning.callbacks.zero_shot import ZeroShot

__all__ = [
    "Board",
    "Checkpoints",
    "Evaluate",
    "ExportTranscoder",
    "Figures",
    "Predictions",
    "ProgressLine",
    "RandomState",
    "Reconstruction",
    "Requeue",
    "RunRecord",
    "Summary",
    "Table",
    "Throughput",
    "TrainDead",
    "ZeroShot",
]
