"""The residual replacement model: autoencoders on the stream after the blocks, and circuits of their features."""

from __future__ import annotations

from clt_lightning.analysis.circuits.residual.arms import ResidualArms
from clt_lightning.analysis.circuits.residual.evolution import Evolution, evolution
from clt_lightning.analysis.circuits.residual.graph import residual_graph
from clt_lightning.analysis.circuits.residual.relevance import (
    LayerEdges,
    Relevance,
    ResidualModel,
    explains_stream,
    relevance,
    residual_model,
)

__all__ = [
    "Evolution",
    "LayerEdges",
    "Relevance",
    "ResidualArms",
    "ResidualModel",
    "evolution",
    "explains_stream",
    "relevance",
    "residual_graph",
    "residual_model",
]
