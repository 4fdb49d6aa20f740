"""Priors: terms that learn something beside the weights, most of which act on the weights after each step."""

from clt_lightning.training.priors.base import Prior, WeightPrior
from clt_lightning.training.priors.group_l1 import GroupL1
from clt_lightning.training.priors.multi_study import MultiStudy
from clt_lightning.training.priors.pruning import GroupPruning
from clt_lightning.training.priors.sparse_decoding import SparseDecoding

#: What goes by its bare name in a config
SHIPPED = ("GroupL1", "GroupPruning", "MultiStudy", "SparseDecoding")

__all__ = ["GroupL1", "GroupPruning", "MultiStudy", "Prior", "SparseDecoding", "WeightPrior"]
