"""Priors on the weights: what acts on a transcoder after each optimizer step, in the place of a gradient."""

from clt_lightning.training.priors.base import WeightPrior
from clt_lightning.training.priors.group_l1 import GroupL1
from clt_lightning.training.priors.pruning import GroupPruning
from clt_lightning.training.priors.sparse_decoding import SparseDecoding

#: What goes by its bare name in a config
SHIPPED = ("GroupL1", "GroupPruning", "SparseDecoding")

__all__ = ["GroupL1", "GroupPruning", "SparseDecoding", "WeightPrior"]
