"""Circuits: the graph of one image, what it predicts, and interventions that check it (docs/circuits.md)."""

from __future__ import annotations

from clt_lightning.analysis.circuits.attribute import attribute, top_targets
from clt_lightning.analysis.circuits.graph import Graph, Prediction, Scores
from clt_lightning.analysis.circuits.heads import HeadSplit, head_table, split_by_heads
from clt_lightning.analysis.circuits.image_model import ImageModel, model_of_image
from clt_lightning.analysis.circuits.intervene import Effects, intervene, intervene_on
from clt_lightning.analysis.circuits.linear import LinearTower, Seen, see
from clt_lightning.analysis.circuits.nodes import Node, Nodes
from clt_lightning.analysis.circuits.nodeset import NodeEdit, NodeSet
from clt_lightning.analysis.circuits.open_clip_parts import parts_of
from clt_lightning.analysis.circuits.parts import TowerParts, cast
from clt_lightning.analysis.circuits.queries import HeadScore, explain_score
from clt_lightning.analysis.circuits.validate import Validation, validate

__all__ = [
    "Effects",
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
    "Scores",
    "Seen",
    "TowerParts",
    "Validation",
    "attribute",
    "cast",
    "explain_score",
    "head_table",
    "intervene",
    "intervene_on",
    "model_of_image",
    "parts_of",
    "see",
    "split_by_heads",
    "top_targets",
    "validate",
]
