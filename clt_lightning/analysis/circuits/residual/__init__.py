"""The residual replacement model: sparse autoencoders on the stream after every block, and circuits of their features."""

from __future__ import annotations

from clt_lightning.analysis.circuits.residual.arms import ARMS, ResidualArms
from clt_lightning.analysis.circuits.residual.relevance import (
    LayerEdges,
    Relevance,
    ResidualModel,
    relevance,
    residual_model,
)

__all__ = ["ARMS", "LayerEdges", "Relevance", "ResidualArms", "ResidualModel", "relevance", "residual_model"]
