"""The rules of the residual replacement model, as arms of the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.faithful.arms import UnitArms
from clt_lightning.analysis.circuits.faithful.baseline import Baseline
from clt_lightning.analysis.circuits.faithful.selection import by_edges, by_score
from clt_lightning.analysis.circuits.residual.relevance import (
    LayerEdges,
    Relevance,
    ResidualModel,
    Rules,
    relevance,
    residual_model,
)
from clt_lightning.analysis.target import Target


@dataclass
class _Model:
    """One image and its target, relevance computed once for each way."""

    model: ResidualModel
    target: Target
    baseline: Baseline
    _known: dict[tuple[str, str], Relevance] = field(default_factory=dict)

    def relevance(self, errors: Literal["leaf", "through"], rules: Rules) -> Relevance:
        key = (errors, rules)
        if key not in self._known:
            self._known[key] = relevance(
                self.model, self.target, self.baseline, errors=errors, rules=rules, edges=errors == "leaf"
            )
        return self._known[key]


class ResidualArms(UnitArms[_Model]):
    """See `UnitArms`; of autoencoders at `resid_post`."""

    RULES: ClassVar[dict[str, str]] = {
        "edges": "by edges (the paper's rule)",
        "nodes": "by nodes",
        "edges_plain": "by edges, plain gradients",
        "nodes_plain": "by nodes, plain gradients",
    }

    def model_of(self, image: Tensor, target: Target) -> _Model:
        return _Model(residual_model(self.clip, self.clt, image), target, self.baseline)

    def chosen(self, name: str, model: _Model) -> Tensor:
        rules: Rules = "gradient" if name.endswith("_plain") else "libragrad"
        if name.startswith("nodes"):
            return by_score(self.nodes(model.relevance("through", rules).nodes.cpu()), self.counts)
        found = model.relevance("leaf", rules)
        edges = [(part.readers, self.nodes(part.weight)) for part in found.edges]
        return by_edges(self.nodes(found.nodes.cpu()), edges, self.counts)

    def gradients(self, model: _Model) -> Tensor:
        return model.model.gradients(model.target)

    def edges_kept(self, model: _Model, keep: Tensor) -> Tensor:
        return edges_kept(model.relevance("leaf", "libragrad").edges, keep)


def edges_kept(edges: Sequence[LayerEdges], keep: Tensor) -> Tensor:
    """`(fractions,)`: edges whose both ends are kept."""
    total = torch.zeros(len(keep))
    for layer, part in enumerate(edges):
        real = (part.weight != 0).float()
        readers = keep[:, layer + 1, part.readers].float()
        total += torch.einsum("cr,rn,cn->c", readers, real, keep[:, layer].float())
    return total
