"""Graphs as JSON: circuit-tracer's schema, which its frontend and Neuronpedia read, with fields of our own beside.

Peers' readers ignore fields that they do not know. Ours, so that a graph comes back whole: `clt_lightning` in the
metadata (targets, weights, scores, what the graph was made of), and on every node `kind`, `index_in_layer`, `position`
and `share` (its influence, not cumulated).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.edges import Edges
from clt_lightning.analysis.circuits.graph import CODES, Graph, Scores
from clt_lightning.analysis.circuits.nodes import BIASES, KINDS, Node, Nodes
from clt_lightning.analysis.target import Target
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import parse_json, read_json, read_text, write_json

_OURS = "clt_lightning"
FORMAT = 1
#: What peers call the kinds; theirs are the first four
_TYPES = {
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "input": "embedding",
    "target": "logit",
    "rest": "features left out",
    "skip": "linear skip",
    "bias": "bias",
    "attention": "attention output feature",
    "attention_error": "attention reconstruction error",
}


def cantor(layer: int, feature: int) -> int:
    """The one number that peers make of a layer and a feature."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def node_id(node: Node, n_layers: int) -> str:
    """A name that no other node of a graph has.

    Features are `layer_feature_position`, as peers write them. They write errors `0_layer_position`, which is also the
    name of feature `layer` of layer 0: ours begin with a word instead, and so do the other kinds.
    """
    position = "all" if node.position < 0 else str(node.position)
    if node.kind == "feature":
        return f"{node.layer}_{node.feature}_{position}"
    if node.kind == "attention":
        return f"attention_{node.layer}_{node.feature}_{position}"
    if node.kind == "input":
        return f"E_{0 if node.position < 0 else node.position}_{position}"
    if node.kind == "target":
        return f"{n_layers + 1}_{node.feature}_0"
    if node.kind == "bias":
        return f"bias_{BIASES[node.feature].replace(' ', '_')}_{'out' if node.layer < 0 else node.layer}"
    return f"{node.kind}_{node.layer}_{position}"


def write_graph(graph: Graph, path: Path, slug: str | None = None) -> Path:
    """Write a graph, and list it in `graph-metadata.json` beside it.

    Raises:
        UserError: two nodes of one name, or a file that cannot be written.
    """
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", slug or path.stem)
    content = to_content(graph, slug)
    write_json(path, content, indent=None)
    listed = path.parent / "graph-metadata.json"
    others: list[Any] = []
    if listed.is_file():
        found = read_json(listed).get("graphs")
        others = [g for g in found if isinstance(g, dict) and g.get("slug") != slug] if isinstance(found, list) else []
    ours = {key: value for key, value in content["metadata"].items() if key != _OURS}
    write_json(listed, {"graphs": [*others, ours]})
    return path


def to_content(graph: Graph, slug: str) -> dict[str, Any]:
    """What the file holds."""
    n_layers = int(graph.about.get("n_layers", int(graph.nodes.layer.max()) + 1))
    names = list(graph.nodes.position_names)
    # a summed graph has no places: one token stands for all of them
    tokens = ["all", *names] if graph.summed else names
    cumulated = graph.cumulated()
    chances = (graph.weights / graph.weights.sum()).tolist()
    ids = [node_id(node, n_layers) for node in graph.nodes]
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"two nodes of this graph would be called {twice!r}")
    nodes = [
        _node(graph, node, name, float(cumulated[node.index]), n_layers, chances)
        for node, name in zip(graph.nodes, ids)
    ]
    edges = graph.edges
    links = [
        {"source": ids[s], "target": ids[t], "weight": w}
        for s, t, w in zip(edges.source.tolist(), edges.target.tolist(), edges.weight.tolist())
    ]
    metadata = {
        "slug": slug,
        "scan": str(graph.about.get("scan", "clt-lightning")),
        "transcoder_list": [],
        "prompt_tokens": tokens,
        "prompt": " ".join(str(graph.about.get("key", "image")).split()),
        "node_threshold": graph.about.get("node_threshold", 1.0),
        "schema_version": 1,
        _OURS: {
            "format": FORMAT,
            "targets": [target.to_json() for target in graph.targets],
            "weights": graph.weights.tolist(),
            "scores": graph.scores.to_json(),
            "summed": graph.summed,
            "skip": graph.skip,
            "pruned": graph.pruned,
            "about": graph.about,
            "position_names": names,
            "tangent": graph.tangent.tolist(),
        },
    }
    # the frontend opens with these pinned: the targets, so that it shows something
    pinned = [name for node, name in zip(graph.nodes, ids) if node.kind == "target"]
    q = {"pinnedIds": pinned, "supernodes": [], "linkType": "both", "clickedId": pinned[0], "sg_pos": ""}
    return {"metadata": metadata, "qParams": q, "nodes": nodes, "links": links}


def _node(graph: Graph, node: Node, name: str, cumulated: float, n_layers: int, chances: list[float]) -> dict[str, Any]:
    if node.kind == "input":
        layer = "E"
    elif node.kind == "target":
        layer = str(n_layers + 1)
    elif node.kind == "bias":
        layer = "E" if node.layer < 0 else str(node.layer)
    else:
        layer = str(node.layer)
    place = max(node.position, 0)
    if not graph.summed:
        place = 0 if node.position < 0 else node.position
    elif node.position >= 0:
        place = node.position + 1
    is_target = node.kind == "target"
    chance = chances[node.feature] if is_target else 0.0
    return {
        "node_id": name,
        "feature": cantor(node.layer, node.feature) if node.kind == "feature" else -1,
        "layer": layer,
        "ctx_idx": place,
        "feature_type": _TYPES[node.kind],
        "token_prob": chance,
        "is_target_logit": is_target and node.feature == 0,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{name}-0",
        # the frontend takes a logit's words from between quotes and its probability from behind: both must be there
        "clerp": f'Output "{_unquoted(node.name)}" (p={chance:.3f})' if is_target else _words(node),
        "influence": cumulated,
        "activation": node.activation if node.kind in (*CODES, "target") else None,
        "kind": node.kind,
        "index_in_layer": node.feature,
        "layer_number": node.layer,
        "position": node.position,
        "share": node.influence,
    }


def _unquoted(text: str) -> str:
    return text.replace('"', "'")


def _words(node: Node) -> str:
    return "" if node.kind == "feature" else _unquoted(node.name)


def read_graph(path: Path) -> Graph:
    """A graph that `write_graph` wrote.

    Raises:
        UserError: no graph, or one of another tool, which lacks what ours keeps.
    """
    content = parse_json(read_text(path), path)
    metadata, nodes, links = (content.get(key) for key in ("metadata", "nodes", "links"))
    if not isinstance(metadata, dict) or not isinstance(nodes, list) or not isinstance(links, list):
        raise UserError(f"{path}: no graph: it holds metadata, nodes and links")
    ours = metadata.get(_OURS)
    if not isinstance(ours, dict):
        raise UserError(f"{path}: a graph of another tool: only graphs written by clt_lightning can be read back")
    if ours.get("format") != FORMAT:
        raise UserError(f"{path}: a graph of format {ours.get('format')!r}; this version reads format {FORMAT}")
    try:
        targets = tuple(Target.from_json(target) for target in ours["targets"])
        table = _table(nodes, tuple(ours["position_names"]), tuple(target.name for target in targets))
        number = {node["node_id"]: i for i, node in enumerate(nodes)}
        edges = _edges(links, number, len(nodes))
        scores = ours["scores"]
        return Graph(
            table,
            edges,
            targets,
            torch.tensor(ours["weights"], dtype=torch.float64),
            torch.tensor(ours["tangent"], dtype=torch.float64).reshape(len(targets), len(nodes)),
            bool(ours["summed"]),
            str(ours["skip"]),
            dict(ours["about"]),
            bool(ours["pruned"]),
            Scores(
                _number(scores["replacement"]),
                _number(scores["completeness"]),
                scores["ends"],
                _number(scores["constants"]),
            ),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: a damaged graph: {type(error).__name__} {error}") from error


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _table(nodes: list[dict[str, Any]], positions: tuple[str, ...], targets: tuple[str, ...]) -> Nodes:
    def column(name: str) -> Tensor:
        return torch.tensor([int(node[name]) for node in nodes], dtype=torch.int64)

    def numbers(name: str) -> Tensor:
        return torch.tensor([float(node[name] or 0.0) for node in nodes], dtype=torch.float64)

    kind = torch.tensor([KINDS.index(node["kind"]) for node in nodes], dtype=torch.int64)
    return Nodes(
        kind,
        column("layer_number"),
        column("position"),
        column("index_in_layer"),
        numbers("activation"),
        numbers("share"),
        positions,
        targets,
    )


def _edges(links: list[dict[str, Any]], number: dict[str, int], n: int) -> Edges:
    source = torch.tensor([number[link["source"]] for link in links], dtype=torch.int64)
    target = torch.tensor([number[link["target"]] for link in links], dtype=torch.int64)
    weight = torch.tensor([float(link["weight"]) for link in links], dtype=torch.float64)
    order = torch.argsort(target * n + source)
    return Edges(source[order], target[order], weight[order], n)
