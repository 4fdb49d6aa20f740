"""Is a circuit enough, and is it needed? Masked forwards against a baseline, insertion and deletion curves."""

from __future__ import annotations

from clt_lightning.analysis.circuits.faithful.baseline import Baseline, baseline_of
from clt_lightning.analysis.circuits.faithful.curves import ArmCurve, Curves, Masks, curves
from clt_lightning.analysis.circuits.faithful.dictionary import Dimensions, Features, observe_units
from clt_lightning.analysis.circuits.faithful.masked import masked_embeddings
from clt_lightning.analysis.circuits.faithful.selection import FRACTIONS, by_edges, by_score

__all__ = [
    "FRACTIONS",
    "ArmCurve",
    "Baseline",
    "Curves",
    "Dimensions",
    "Features",
    "Masks",
    "baseline_of",
    "by_edges",
    "by_score",
    "curves",
    "masked_embeddings",
    "observe_units",
]
