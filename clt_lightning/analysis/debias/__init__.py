"""Taking a spurious cue out of a model: which features carry it, one edit for all images, and what that costs."""

from clt_lightning.analysis.debias.erase import Erasure, erase
from clt_lightning.analysis.debias.groups import Groups, Scores
from clt_lightning.analysis.debias.options import DebiasOptions
from clt_lightning.analysis.debias.predictor import Head
from clt_lightning.analysis.debias.regression import Regression, regressed_out
from clt_lightning.analysis.debias.relevance import Relevance, relevance_of
from clt_lightning.analysis.debias.result import ArmResult, DebiasResult
from clt_lightning.analysis.debias.study import debias
from clt_lightning.analysis.debias.truth import cue_truth
from clt_lightning.interventions.mean_ablation import mean_ablated

__all__ = [
    "ArmResult",
    "DebiasOptions",
    "DebiasResult",
    "Erasure",
    "Groups",
    "Head",
    "Regression",
    "Relevance",
    "Scores",
    "cue_truth",
    "debias",
    "erase",
    "mean_ablated",
    "regressed_out",
    "relevance_of",
]
