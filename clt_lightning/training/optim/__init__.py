"""Optimizers for the large, oddly laid out weights of a transcoder."""

from clt_lightning.training.optim.dense import AdamW
from clt_lightning.training.optim.row_sparse import RowSparseAdam

__all__ = ["AdamW", "RowSparseAdam"]
