"""The rules of transcoders in the place of the MLPs, as arms of the curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.attribution import attribute
from clt_lightning.analysis.circuits.faithful.arms import UnitArms
from clt_lightning.analysis.circuits.faithful.selection import by_score
from clt_lightning.analysis.circuits.image_model import ImageModel, model_of_image
from clt_lightning.analysis.circuits.linear import LinearTower
from clt_lightning.analysis.target import Target


@dataclass
class _Model:
    model: ImageModel
    target: Target


class MlpArms(UnitArms[_Model]):
    """See `UnitArms`; of cross-layer or per-layer transcoders, or autoencoders of the MLPs' outputs."""

    RULES: ClassVar[dict[str, str]] = {
        "graph": "by influence in the image's graph",
        "nodes": "by nodes",
        "nodes_plain": "by nodes, plain gradients",
    }

    def model_of(self, image: Tensor, target: Target) -> _Model:
        return _Model(model_of_image(self.clip, self.clt, image, skip="through"), target)

    def chosen(self, name: str, model: _Model) -> Tensor:
        scores = self._influence(model) if name == "graph" else self._relevance(model, name == "nodes_plain")
        return by_score(self.nodes(scores), self.counts)

    def gradients(self, model: _Model) -> Tensor:
        return self._gradients(model, False)

    def _influence(self, model: _Model) -> Tensor:
        """`(layers, F + 1)`: influence of every feature at all its positions, and of errors."""
        graph = attribute(
            self.clip,
            self.clt,
            model.model.image[0],
            model.target,
            positions="summed",
            skip="through",
            max_nodes=self.clt.n_layers * self.clt.n_features,
        )
        out = torch.zeros(self.clt.n_layers, self.clt.n_features + 1)
        nodes = graph.nodes
        for kind in ("feature", "error"):
            here = nodes.of(kind)
            feature = nodes.feature[here] if kind == "feature" else torch.full_like(nodes.layer[here], out.shape[1] - 1)
            out[nodes.layer[here], feature] = nodes.influence[here].float()
        return out

    def _relevance(self, model: _Model, plain: bool) -> Tensor:
        """`(layers, F + 1)`: what each feature adds against its baseline by the target's gradient, and errors."""
        clt, sources = self.clt, model.model.sources
        gradients = self._gradients(model, plain)
        out = gradients.new_zeros(clt.n_layers, clt.n_features + 1)
        for layer in range(clt.n_layers):
            active = sources.all_active[layer]
            codes = gradients.new_zeros(gradients.shape[1], clt.n_features)
            codes[active.positions, active.features] = active.values
            by_code = torch.zeros_like(codes)
            for target in range(layer, clt.n_layers):
                if clt.writes(layer, target):
                    decoders = clt.W_dec[layer].detach()[:, target - layer] * clt.y_scale[target]
                    by_code += gradients[target] @ decoders.T
            out[layer, :-1] = (by_code * (codes - self.baseline.codes[layer].to(codes))).sum(0)
            errors = sources.errors[layer] - self.baseline.errors[layer].to(codes)
            out[layer, -1] = (gradients[layer] * errors).sum()
        return out.cpu()

    def _gradients(self, model: _Model, plain: bool) -> Tensor:
        """By what each MLP adds, through the model's own MLPs: gates, patterns and scales held, or nothing (plain)."""
        parts, seen = model.model.parts, model.model.seen
        tower = LinearTower(parts, seen, "libragrad", tangent=plain)
        frozen = not plain and parts.read_out.other is None
        row = model.model.row(model.target, "frozen" if frozen else "tangent")
        last = tower.n_layers - 1
        steps = tower.pull(last, 1, final=row.gradient[None].to(model.model.image))
        found = [step.gradient[0] for step in steps if step.place == "mlp"]
        return torch.stack(found[::-1])
