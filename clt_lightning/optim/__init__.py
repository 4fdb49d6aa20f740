"""Optimizers for the large, oddly laid out weights of a transcoder."""

from clt_lightning.optim.dense import AdamW
from clt_lightning.optim.row_sparse import RowSparseAdam

__all__ = ["AdamW", "RowSparseAdam"]
