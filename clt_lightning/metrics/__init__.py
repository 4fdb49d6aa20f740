"""Metrics of transcoders: sums over a whole split in float64, the same number for any batching and process count."""

from __future__ import annotations

from clt_lightning.metrics.base import ExactMetric, metric_device
from clt_lightning.metrics.codes import L0, CodeHistograms, DeadFeatures
from clt_lightning.metrics.reconstruction import FVU, MSE, R2, Cosine, FVUAndMSE, unexplained
from clt_lightning.metrics.share import FeaturesShare
from clt_lightning.metrics.tokens import TOKEN_SETS, TokenLayout, check_token_sets, present, select, token_mask
from clt_lightning.metrics.zero_shot import LOGIT_SCALE, LogitKL, ZeroShotAccuracy, divergences, ranks_of

__all__ = [
    "FVU",
    "L0",
    "LOGIT_SCALE",
    "MSE",
    "R2",
    "TOKEN_SETS",
    "CodeHistograms",
    "Cosine",
    "DeadFeatures",
    "ExactMetric",
    "FVUAndMSE",
    "FeaturesShare",
    "LogitKL",
    "TokenLayout",
    "ZeroShotAccuracy",
    "check_token_sets",
    "divergences",
    "metric_device",
    "present",
    "ranks_of",
    "select",
    "token_mask",
    "unexplained",
]
