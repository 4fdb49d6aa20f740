"""The data of a circuit's page: a graph of one image, its edges' heads, and predictions for sets of its nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.circuits import attribute, model_of_image, split_by_heads
from clt_lightning.analysis.circuits.derivative import tower_responses
from clt_lightning.analysis.circuits.faithful import Baseline, Features, observe_units
from clt_lightning.analysis.circuits.graph import COUNTED, Graph
from clt_lightning.analysis.circuits.image_model import ImageModel
from clt_lightning.analysis.circuits.nodes import BIASES
from clt_lightning.analysis.circuits.nodeset import NodeSet
from clt_lightning.analysis.circuits.residual import residual_graph
from clt_lightning.analysis.run import Run
from clt_lightning.analysis.target import Target
from clt_lightning.analysis.tower import at_all_mlps
from clt_lightning.backbone.clip.images import to_pixels
from clt_lightning.report.numbers import to_list
from clt_lightning.report.packing import pack_column, pack_maps, pack_numbers
from clt_lightning.report.studies import picture_address

#: Nodes of a page at most (inputs included; biases and targets are there besides), and the share of influence that they
#: reach for
NODES, SHARE = 240, 0.95
EDGES = 3000
#: Features that a report's graphs have as nodes at most
MAX_NODES = 2048
#: Nodes that a page opens with, and the share of influence
_OPEN_NODES, _OPEN_SHARE = 60, 0.8
#: Heads that are kept of an edge, and backwards of heads in one circuit
_HEADS, _HEAD_ROWS = 3, 1000


def circuit_of(run: Run, image: Tensor, target: Target, baseline: Baseline | None = None) -> Any:
    """The circuit of an image, as its page reads it: a graph of at most `MAX_NODES` features, packed.

    Args:
        run: an opened run.
        image: `(3, size, size)`, preprocessed.
        target: what is explained.
        baseline: of autoencoders of the residual stream, which need one.

    Raises:
        UserError: as `attribute` and `residual_graph`.
    """
    if baseline is not None:
        return pack_circuit(residual_graph(run.clip, run.transcoder, image, target, baseline), run, image)
    return pack_circuit(attribute(run.clip, run.transcoder, image, target, max_nodes=MAX_NODES), run, image)


def picture_of(run: Run, image: Tensor, key: str, label: int) -> dict[str, Any]:
    """What all circuits of an image have in common.

    Args:
        run: an opened run.
        image: `(3, size, size)`, preprocessed.
        key: its key.
        label: its class; -1: none.
    """
    pixels = to_pixels(image, run.clip.mean, run.clip.std)
    return {"key": key, "label": label, "picture": picture_address(pixels), "grid": list(run.clip.grid)}


def asked_targets(run: Run, image: Tensor, label: int) -> list[Target]:
    """What an image's page asks first: the predicted class minus the runner-up, and on a mistake minus its own.

    Args:
        run: an opened run, with class names.
        image: `(3, size, size)`, preprocessed.
        label: its class; -1: none.
    """
    head, names, scale = run.require_head("no logit to explain"), run.datamodule.classnames, run.clip.logit_scale
    logits = run.clip.encode_image(image.to(run.clip.device))[0] @ head
    best = logits.topk(min(2, len(names))).indices.tolist()
    if len(best) == 1:
        return [Target.of_class(head, names, best[0], scale)]
    less = [best[1], *([label] if label >= 0 and label not in best else [])]
    return [Target.difference(head, names, best[0], other, scale) for other in less]


def pack_circuit(graph: Graph, run: Run | None = None, image: Tensor | None = None) -> dict[str, Any]:
    """A graph as the page's script reads it (docs/report.md: The data of a circuit's page).

    Args:
        graph: not pruned.
        run: the run that it is of; without it neither heads nor predictions are there.
        image: the image that it is of, `(3, size, size)`, preprocessed.
    """
    shown = shown_nodes(graph)
    edges = shown_edges(graph, shown)
    table = graph.nodes
    cumulated = _cumulated(graph)
    model = through = None
    if run is not None and image is not None and not graph.summed and at_all_mlps(run.clip, run.transcoder):
        model = model_of_image(run.clip, run.transcoder, image, torch.float32, graph.skip)  # type: ignore[arg-type]
        through = model
        if graph.skip == "node" and run.transcoder.W_skip is not None:
            through = model_of_image(run.clip, run.transcoder, image, torch.float32, "through")

    def column(values: Tensor, kind: Any) -> str:
        return pack_column(values[shown].cpu().numpy().astype(kind))

    return {
        "targets": [target.name for target in graph.targets],
        "weights": to_list(graph.weights.numpy(), 6),
        "positions": list(table.position_names),
        "layers": int(graph.about.get("n_layers", int(table.layer.max()) + 1)),
        "prefix": int(graph.about.get("n_prefix", 1)),
        "summed": graph.summed,
        # what edges into features are measured in: their codes, or the target (of the residual stream)
        "units": str(graph.about.get("units", "codes")),
        "skip": graph.skip,
        "biases": list(BIASES),
        "scores": {
            name: value if value == value else None
            for name, value in graph.scores.to_json().items()
            if isinstance(value, float)
        },
        "ends": dict(graph.scores.ends),
        "active": int(graph.about.get("active", int(table.of("feature").sum()))),
        "nodes": {
            "kind": column(table.kind, np.int8),
            "layer": column(table.layer, np.int16),
            "position": column(table.position, np.int16),
            "feature": column(table.feature, np.int32),
            "activation": column(table.activation, np.float32),
            "influence": column(table.influence, np.float32),
            "cumulated": column(cumulated, np.float32),
        },
        "open": _open_share(graph, shown, cumulated),
        "edges": {
            "source": pack_column(edges.source.numpy().astype(np.int16)),
            "target": pack_column(edges.target.numpy().astype(np.int16)),
            "weight": pack_column(edges.weight.numpy().astype(np.float32)),
        },
        # a node's edges are a sum: of what is not drawn the page shows one number
        "inputs": pack_column(graph.edges.inputs()[shown].numpy().astype(np.float32)),
        "maps": _maps(graph, shown, run, image),
        "heads": None if model is None else _heads(graph, model, shown, edges),
        "responses": None if through is None else _responses(graph, through, shown),
    }


@dataclass(frozen=True)
class ShownEdges:
    """Edges between nodes that are shown, the most important first; ends as numbers among these nodes.

    Attributes:
        source: `(edges,)` int64.
        target: `(edges,)` int64.
        weight: `(edges,)` float64.
    """

    source: Tensor
    target: Tensor
    weight: Tensor


def shown_nodes(graph: Graph) -> Tensor:
    """The indices of the nodes of a page, in the graph's order: the most influential ones, all biases and targets."""
    table = graph.nodes
    wanted = table.of(*COUNTED) & ~table.of("target")
    order = torch.where(wanted, table.influence, -1.0).argsort(descending=True, stable=True)[: int(wanted.sum())]
    reached = _cumulated(graph)[order]
    before = torch.cat([reached.new_zeros(1), reached[:-1]])
    chosen = order[(before < SHARE) & (table.influence[order] > 0)][:NODES]
    kept = table.of("target", "bias", "rest").index_fill(0, chosen, True)
    return kept.nonzero().flatten()


def shown_edges(graph: Graph, shown: Tensor) -> ShownEdges:
    """At most `EDGES` edges between some nodes, in the order of the influence that they carry (biases count)."""
    table, edges = graph.nodes, graph.edges
    everything = torch.ones(len(table), dtype=torch.bool)
    size = edges.shares(everything) * (table.influence + graph.target_weights)[edges.target]
    number = torch.full((len(table),), -1, dtype=torch.int64)
    number[shown] = torch.arange(len(shown))
    among = ((number[edges.source] >= 0) & (number[edges.target] >= 0) & (size > 0)).nonzero().flatten()
    order = among[size[among].argsort(descending=True, stable=True)[:EDGES]]
    return ShownEdges(number[edges.source[order]], number[edges.target[order]], edges.weight[order].double())


def _cumulated(graph: Graph) -> Tensor:
    """`(nodes,)`: the share of influence that a node and the more influential ones have; 0 for what is always shown."""
    table = graph.nodes
    wanted = table.of(*COUNTED) & ~table.of("target")
    influence = torch.where(wanted, table.influence, 0.0)
    order = influence.argsort(descending=True, stable=True)
    out = torch.zeros_like(influence)
    out[order] = influence[order].cumsum(0) / influence.sum().clamp(min=1e-300)
    return torch.where(wanted, out, 0.0)


def _open_share(graph: Graph, shown: Tensor, cumulated: Tensor) -> float:
    wanted = graph.nodes.of(*COUNTED) & ~graph.nodes.of("target")
    reached = cumulated[shown][wanted[shown]].sort().values
    if not len(reached):
        return 1.0
    share = float(reached[min(_OPEN_NODES, len(reached)) - 1])
    return min(_OPEN_SHARE, -(-share * 100 // 1) / 100)


def _maps(graph: Graph, shown: Tensor, run: Run | None, image: Tensor | None) -> dict[str, Any]:
    """Codes over the image of every feature that is shown.

    A graph knows those that are nodes of it; of a summed one, whose nodes have no place, the image is run once more.
    """
    table = graph.nodes
    positions = len(table.position_names)
    found: dict[tuple[int, int], int] = {}
    for index in shown[table.of("feature")[shown]].tolist():
        found.setdefault((int(table.layer[index]), int(table.feature[index])), len(found))
    maps = np.zeros((len(found), positions), np.float32)
    for node in table.of("feature").nonzero().flatten().tolist():
        row = found.get((int(table.layer[node]), int(table.feature[node])))
        if row is not None and table.position[node] >= 0:
            maps[row, int(table.position[node])] = float(table.activation[node])
    if graph.summed and found and run is not None and image is not None:
        seen = observe_units(run.clip, Features(run.clip, run.transcoder), image[None].to(run.clip.device))
        for (layer, feature), row in found.items():
            maps[row] = seen.codes[layer][:, feature].float().cpu().numpy()
    peaks = np.abs(maps).max(1) if len(maps) else np.zeros(0, np.float32)
    return {
        "layer": pack_column(np.array([layer for layer, _ in found], np.int16)),
        "feature": pack_column(np.array([feature for _, feature in found], np.int32)),
        "peaks": pack_column(peaks.astype(np.float32)),
        "maps": pack_maps(maps, peaks),
    }


def _heads(graph: Graph, model: ImageModel, shown: Tensor, edges: ShownEdges) -> dict[str, Any] | None:
    """The edges into the most influential nodes, split over heads: the `_HEADS` largest of each edge."""
    table = graph.nodes
    if bool(table.of("attention").any()) or graph.about.get("tower", "held") != "held":
        return None
    n_heads = model.parts.blocks[0].attention.n_heads
    most = max(4, _HEAD_ROWS // (graph.about["n_layers"] * n_heads))
    readers = shown[table.of("feature", "target")[shown]]
    size = table.influence[readers] + graph.target_weights[readers]
    readers = readers[size.argsort(descending=True, stable=True)[:most]]
    number = {int(index): n for n, index in enumerate(shown.tolist())}
    which, heads, values, direct = [], [], [], []
    for reader in sorted(readers.tolist()):
        split = split_by_heads(model, graph, reader)
        mine = (edges.target == number[reader]).nonzero().flatten()
        sources = shown[edges.source[mine]]
        parts = split.heads.flatten(0, 1)[:, sources].T
        best = parts.abs().topk(min(_HEADS, parts.shape[1]), 1).indices
        which.append(mine)
        heads.append(best)
        values.append(parts.gather(1, best))
        direct.append(split.direct[sources])
    return {
        "count": n_heads,
        "kept": min(_HEADS, n_heads * graph.about["n_layers"]),
        "readers": [number[reader] for reader in sorted(readers.tolist())],
        "edge": pack_column(torch.cat(which).numpy().astype(np.int16)),
        "head": pack_column(torch.cat(heads).numpy().astype(np.int16)),
        "value": pack_column(torch.cat(values).numpy().astype(np.float32)),
        "direct": pack_column(torch.cat(direct).numpy().astype(np.float32)),
    }


def _responses(graph: Graph, model: ImageModel, shown: Tensor) -> dict[str, Any]:
    """What each feature and error, taken away, does to the targets and to the codes above: of the tangent tower.

    From these the page solves for any set of them, since all is linear: with changed nodes pinned, the set's effect is
    that of impulses which bring every node of it to its new code.
    """
    table = graph.nodes
    chosen = shown[table.of("feature", "error")[shown]]
    sets = [NodeSet.of_graph(graph, [index], "scale", 0.0) for index in chosen.tolist()]
    targets, codes = tower_responses(model, sets, graph.targets)
    active = model.sources.all_active
    place = {
        (layer, int(p), int(f)): n
        for n, (layer, p, f) in enumerate(
            (layer, p, f)
            for layer, a in enumerate(active)
            for p, f in zip(a.positions.tolist(), a.features.tolist(), strict=True)
        )
    }
    is_feature = table.of("feature")[chosen]
    where = torch.tensor(
        [
            place[int(table.layer[i]), int(table.position[i]), int(table.feature[i])] if feature else -1
            for i, feature in zip(chosen.tolist(), is_feature.tolist())
        ],
        dtype=torch.int64,
    )
    clean = torch.where(is_feature, table.activation[chosen], 1.0)
    relative = codes[:, where.clamp(min=0)] / clean
    layers = table.layer[chosen]
    # an error is added behind the features of its layer, so that it never reaches them
    reaches = (layers[:, None] < layers[None, :]) & is_feature[None, :]
    number = {int(index): n for n, index in enumerate(shown.tolist())}
    return {
        "nodes": pack_column(np.array([number[index] for index in chosen.tolist()], np.int16)),
        "targets": pack_column(targets.numpy().astype(np.float32)),
        "codes": pack_numbers(relative[reaches].numpy()),
    }
