"""The residual replacement model of one image as a `Graph`: pruned, scored and written like any other."""

from __future__ import annotations

import time
from typing import Any

import PIL.Image
import torch
from torch import Tensor

from clt_lightning.analysis.circuits.edges import Edges
from clt_lightning.analysis.circuits.faithful.baseline import Baseline
from clt_lightning.analysis.circuits.graph import Graph, with_influence
from clt_lightning.analysis.circuits.nodes import make_nodes
from clt_lightning.analysis.circuits.residual.relevance import (
    Relevance,
    input_edges,
    relevance,
    residual_model,
)
from clt_lightning.analysis.target import Target
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder


@torch.no_grad()
def residual_graph(
    clip: Any,
    sae: CrossLayerTranscoder,
    image: Tensor | PIL.Image.Image,
    target: Target,
    baseline: Baseline,
    *,
    dtype: torch.dtype = torch.float32,
    about: dict[str, Any] | None = None,
) -> Graph:
    """The graph of one image: every feature that differs from its baseline, summed over positions.

    An edge is what its source adds, against the baseline, to the target through its reader, in the target's units: the
    edges out of a feature sum to what it adds altogether. What an image without features' changes has already (the
    baseline, constants) is in the bias nodes, so that the edges into a reader sum to all that goes through it. Inputs
    are the stream at the entry of block 0.

    Args:
        clip: the backbone.
        sae: autoencoders at `resid_post`.
        image: `(3, size, size)`, preprocessed, or a PIL image.
        target: what is explained.
        baseline: what features and errors are compared with.
        dtype: float32 or float64.
        about: plain values to keep.

    Raises:
        UserError: arguments that do not fit.
    """
    began = time.monotonic()
    model = residual_model(clip, sae, image, dtype)
    found = relevance(model, target, baseline)
    through, entering = input_edges(model, target)
    L, F = model.n_layers, sae.n_features
    if not bool((found.nodes[:, :-1] != 0).any()):
        raise UserError("no feature of this image differs from its baseline where the target reads it: no graph")
    is_node = found.nodes[:, :-1].cpu() != 0
    for layer, part in enumerate(found.edges):
        is_node[layer + 1, part.readers] = True
    is_node[0, entering.readers] = True
    layer_of, feature_of = is_node.nonzero(as_tuple=True)
    n_features = len(layer_of)
    number = torch.full((L, F + 1), -1, dtype=torch.int64)
    number[layer_of, feature_of] = torch.arange(n_features)
    number[:, -1] = n_features + torch.arange(L)
    prefix = model.parts.n_prefix
    n_inputs = min(prefix + 1, model.errors.shape[1])
    inputs_at, biases_at = n_features + L, n_features + L + n_inputs
    target_at = biases_at + L + 1
    rows = _rows(found, entering.weight, entering.readers, through, number, inputs_at, biases_at, target_at)
    codes = torch.stack([layer.sum(0) for layer in model.codes]).cpu()
    nowhere = torch.full((L,), -1)
    where = torch.arange(n_inputs)
    if n_inputs > prefix:
        where[prefix] = -1
    bias_layers = torch.cat([torch.arange(L), torch.tensor([-1])])
    nodes = make_nodes(
        [
            ("feature", layer_of, torch.full_like(layer_of, -1), feature_of, codes[layer_of, feature_of]),
            ("error", torch.arange(L), nowhere, nowhere, None),
            ("input", torch.full((n_inputs,), -1), where, torch.full((n_inputs,), -1), None),
            ("bias", bias_layers, torch.full_like(bias_layers, -1), torch.tensor([2] * L + [3]), None),
            ("target", torch.tensor([-1]), torch.tensor([-1]), torch.tensor([0]), torch.tensor([found.value])),
        ],
        model.parts.position_names(),
        [target.name],
    )
    edges = Edges.cat([Edges.from_rows(row[None], torch.tensor([at]), len(nodes)) for at, row in rows])
    facts: dict[str, Any] = {
        "backbone": model.parts.name,
        "grid": list(model.parts.grid),
        "n_prefix": prefix,
        "n_layers": L,
        "blocks": list(model.blocks),
        "n_features": F,
        "topology": sae.topology,
        "site": "resid_post",
        "units": "target",
        "baseline": {"kind": baseline.kind, "images": baseline.n_images},
        "dtype": str(dtype).removeprefix("torch."),
        "image_size": clip.image_size,
    }
    facts |= (about or {}) | {"seconds": time.monotonic() - began}
    weights = torch.ones(1, dtype=torch.float64)
    return with_influence(Graph(nodes, edges, (target,), weights, rows[-1][1][None], True, "through", facts))


def _rows(
    found: Relevance,
    entering: Tensor,
    entering_readers: Tensor,
    through: list[Tensor],
    number: Tensor,
    inputs_at: int,
    biases_at: int,
    target_at: int,
) -> list[tuple[int, Tensor]]:
    """Dense rows of all readers, in the order of nodes: what each source adds, and the rest to the layer's bias."""
    n = target_at + 1
    rows: list[tuple[int, Tensor]] = []

    def row(at: int, columns: Tensor, values: Tensor, total: float, bias: int) -> None:
        some = columns >= 0
        out = values.new_zeros(n, dtype=torch.float64)
        out[columns[some]] = values[some].double()
        out[bias] = total - float(out.sum())
        rows.append((at, out))

    inputs = inputs_at + torch.arange(entering.shape[1])
    for reader, values in zip(entering_readers.tolist(), entering):
        row(int(number[0, reader]), inputs, values, float(through[0][reader]), biases_at)
    for layer, part in enumerate(found.edges):
        for reader, values in zip(part.readers.tolist(), part.weight):
            total = float(through[layer + 1][reader])
            row(int(number[layer + 1, reader]), number[layer], values, total, biases_at + layer + 1)
    last = len(number) - 1
    row(target_at, number[last], found.nodes[last].cpu(), found.value, biases_at + last + 1)
    return sorted(rows, key=lambda one: one[0])
