"""Circuits: the graph of one image, what it predicts, and interventions that check it (docs/circuits.md)."""

from __future__ import annotations

from clt_lightning.analysis.circuits.attention_features import attribute_with_attention
from clt_lightning.analysis.circuits.attribution import attribute, top_targets
from clt_lightning.analysis.circuits.concepts import ConceptAblation, ablate_concepts, mean_codes, random_features
from clt_lightning.analysis.circuits.expected import EdgeSums, ExpectedGraph, expected_graph
from clt_lightning.analysis.circuits.forward import Seen, see
from clt_lightning.analysis.circuits.graph import Graph, Prediction, Scores
from clt_lightning.analysis.circuits.heads import HeadSplit, head_table, split_by_heads
from clt_lightning.analysis.circuits.image_model import ImageModel, model_of_image
from clt_lightning.analysis.circuits.intervention import Effects, intervene, intervene_on
from clt_lightning.analysis.circuits.linear import LinearTower
from clt_lightning.analysis.circuits.nodes import Node, Nodes
from clt_lightning.analysis.circuits.nodeset import NodeEdit, NodeSet
from clt_lightning.analysis.circuits.open_clip_parts import parts_of
from clt_lightning.analysis.circuits.parts import TowerParts
from clt_lightning.analysis.circuits.queries import HeadScore, explain_score
from clt_lightning.analysis.circuits.residual import Relevance, ResidualModel, relevance, residual_model
from clt_lightning.analysis.circuits.validation import Validation, validate
from clt_lightning.analysis.circuits.virtual import by_coactivation, rank_correlation, virtual_weights
from clt_lightning.backbone.attention_parts import cast

__all__ = [
    "ConceptAblation",
    "EdgeSums",
    "Effects",
    "ExpectedGraph",
    "Graph",
    "HeadScore",
    "HeadSplit",
    "ImageModel",
    "LinearTower",
    "Node",
    "NodeEdit",
    "NodeSet",
    "Nodes",
    "Prediction",
    "Relevance",
    "ResidualModel",
    "Scores",
    "Seen",
    "TowerParts",
    "Validation",
    "ablate_concepts",
    "attribute",
    "attribute_with_attention",
    "by_coactivation",
    "cast",
    "expected_graph",
    "explain_score",
    "head_table",
    "intervene",
    "intervene_on",
    "mean_codes",
    "model_of_image",
    "parts_of",
    "random_features",
    "rank_correlation",
    "relevance",
    "residual_model",
    "see",
    "split_by_heads",
    "top_targets",
    "validate",
    "virtual_weights",
]
