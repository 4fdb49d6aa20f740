"""Callbacks: what is measured, shown and written while a transcoder trains. Usable from YAML by class path."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback

from clt_lightning.callbacks.attention import AttentionReconstruction
from clt_lightning.callbacks.board import Board
from clt_lightning.callbacks.checkpoints import Checkpoints
from clt_lightning.callbacks.curves import Curves
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
from clt_lightning.callbacks.shares import Shares
from clt_lightning.callbacks.summary import Summary
from clt_lightning.callbacks.table import Table
from clt_lightning.callbacks.throughput import Throughput
from clt_lightning.callbacks.zero_shot import ZeroShot


def default(
    classnames: Sequence[str] | None = None, templates: Sequence[str] = ("a photo of a {c}.",)
) -> list[Callback]:
    """The callbacks of a run in Python: metrics, tables, checkpoints, the transcoder's files and the run's record.

    `Trainer(callbacks=cl.callbacks.default(classnames))`. Files go into the logger's folder, as on the command line.

    Args:
        classnames: for zero-shot accuracy, in the order of the labels; None takes a data module's own, if any.
        templates: prompt templates; used with `classnames`.
    """
    names = None if classnames is None else list(classnames)
    texts = None if classnames is None else list(templates)
    zero_shot = ZeroShot(classnames=names, templates=texts, include_mean_ablation=True)
    evaluate = Evaluate(classnames=names, templates=texts)
    return [Reconstruction(), zero_shot, Shares(), evaluate, Checkpoints(), Table(), ExportTranscoder(), RunRecord()]


__all__ = [
    "AttentionReconstruction",
    "Board",
    "Checkpoints",
    "Curves",
    "Evaluate",
    "ExportTranscoder",
    "Figures",
    "Predictions",
    "ProgressLine",
    "RandomState",
    "Reconstruction",
    "Requeue",
    "RunRecord",
    "Shares",
    "Summary",
    "Table",
    "Throughput",
    "TrainDead",
    "ZeroShot",
    "default",
]
