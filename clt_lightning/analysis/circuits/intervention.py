"""`cl.intervene`: what an intervention does, beside what a graph says that it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.analysis.circuits.derivative import tower_moves, tower_predictions
from clt_lightning.analysis.circuits.forward import embed_stream
from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.circuits.image_model import ImageModel, model_of_image
from clt_lightning.analysis.circuits.nodes import Node
from clt_lightning.analysis.circuits.nodeset import NodeSet
from clt_lightning.analysis.circuits.predict import check_predicts, predicted
from clt_lightning.analysis.circuits.read_out import target_values
from clt_lightning.analysis.circuits.rerun import Base, Mode, pinned_code, rerun
from clt_lightning.analysis.target import Target
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder


@dataclass(frozen=True)
class Effects:
    """What changing nodes does to one image.

    Attributes:
        mode: what was held.
        sets: what was changed, each by itself.
        targets: what is read.
        before: `(targets,)` float64 values of the untouched image.
        observed: `(sets, targets)` float64: how they change. With `frozen` and `reencoded`, read with the norms held.
        tangent: the same, read to first order; equal to `observed` for `live`, which reads as the model does.
        predicted: `(sets, targets)` by what predicts. Of `live` alone, with or without a graph: `tower`, the tower to
            first order, and `moved`, that tower with the whole change made; `frozen` and `tangent`: the graph's rows.
            `prediction` is the one to look at.
        cosine: `(sets,)` between the image's embeddings before and after.
        places: `(3, sources)` layers, positions and features of the image's active features.
        codes: `(sources,)` their codes.
        changes: `(sets, sources)` how these change; None if not asked for.
        predicted_changes: what the graph says of that; NaN for features that are no nodes of it. None without a graph.
    """

    mode: str
    sets: tuple[NodeSet, ...]
    targets: tuple[Target, ...]
    before: Float[Tensor, " targets"]
    observed: Float[Tensor, "sets targets"]
    tangent: Float[Tensor, "sets targets"]
    predicted: dict[str, Tensor] = field(repr=False)
    cosine: Float[Tensor, " sets"] = field(repr=False)
    places: Int[Tensor, "3 sources"] = field(repr=False)
    codes: Float[Tensor, " sources"] = field(repr=False)
    changes: Float[Tensor, "sets sources"] | None = field(repr=False)
    predicted_changes: Float[Tensor, "sets sources"] | None = field(repr=False)

    @property
    def prediction(self) -> Float[Tensor, "sets targets"] | None:
        """`(sets, targets)`: what predicts this mode best: the moved tower a live model, frozen rows a held one.

        None for a held model without a graph.
        """
        return self.predicted.get("moved" if self.mode == "live" else "frozen")

    def to_json(self) -> dict[str, Any]:
        """Plain values: the sets, the targets, and their changes."""
        return {
            "mode": self.mode,
            "sets": [nodes.to_json() for nodes in self.sets],
            "targets": [target.name for target in self.targets],
            "before": self.before.tolist(),
            "observed": self.observed.tolist(),
            "observed_tangent": self.tangent.tolist(),
            "predicted": {rows: values.tolist() for rows, values in self.predicted.items()},
            "cosine": self.cosine.tolist(),
        }


def intervene(
    clip: Any,
    clt: CrossLayerTranscoder,
    image: Float[Tensor, "*images 3 size size"] | PIL.Image.Image,
    nodes: NodeSet | Sequence[NodeSet] | Sequence[Node],
    mode: Mode = "live",
    *,
    target: Target | Sequence[Target] | None = None,
    graph: Graph | None = None,
    base: Base = "original",
    codes: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Effects:
    """Change nodes of one image, and see what becomes of targets and of other features.

    Args:
        clip: the backbone.
        clt: its transcoder.
        image: `(3, size, size)`, preprocessed, or a PIL image.
        nodes: what is changed; of several sets, each by itself. Nodes of a graph are taken away, together.
        mode: `frozen`, `reencoded` or `live`, see `rerun`.
        target: what is read; None: the graph's targets.
        graph: of this image, for predictions by its rows and of other features (made with `skip="through"` where the
            transcoder has a skip).
        base: of `live`: `original`, the backbone's own MLPs, or `transcoder` in their place.
        codes: whether the changes of other features are wanted.
        dtype: float32 or float64.

    Raises:
        UserError: nodes that do not exist, arguments that do not fit, or a graph that cannot predict.
    """
    model = model_of_image(clip, clt, image, dtype, "through")
    return intervene_on(model, as_sets(nodes), mode, target, graph, base, codes)


def as_sets(nodes: NodeSet | Sequence[NodeSet] | Sequence[Node]) -> tuple[NodeSet, ...]:
    """Sets of nodes from what `intervene` takes."""
    if isinstance(nodes, NodeSet):
        return (nodes,)
    several = list(nodes)
    if not several:
        raise UserError("no nodes were given to intervene on")
    if all(isinstance(one, NodeSet) for one in several):
        return tuple(several)  # type: ignore[arg-type]
    if all(isinstance(one, Node) for one in several):
        return (NodeSet.of_graph(_Table(several), range(len(several))),)
    raise UserError(f"nodes are a NodeSet, several, or nodes of a graph, got {several[0]!r}")


@dataclass(frozen=True)
class _Table:
    nodes: list[Any]


@torch.no_grad()
def intervene_on(
    model: ImageModel,
    sets: Sequence[NodeSet],
    mode: Mode,
    target: Target | Sequence[Target] | None = None,
    graph: Graph | None = None,
    base: Base = "original",
    codes: bool = True,
) -> Effects:
    """As `intervene`, on an image that was run before (with `skip="through"`)."""
    clt, parts = model.clt, model.parts
    if model.skip != "through" and clt.W_skip is not None:
        raise UserError("interventions follow the linear skip: the image must be run with skip='through'")
    for nodes in sets:
        nodes.check(clt.n_layers, clt.n_features, parts.n_positions)
    if target is None:
        targets = () if graph is None else graph.targets
    else:
        targets = (target,) if isinstance(target, Target) else tuple(target)
    if graph is not None:
        check_predicts(graph)
    found = rerun(model, sets, mode, base, codes)
    final, stream = found.final, model.seen.streams[-1]
    embeddings = embed_stream(parts, final)
    clean = torch.stack([target_values(parts, model.seen.embedding, t)[0] for t in targets]) if targets else None
    before = torch.zeros(0, dtype=torch.float64) if clean is None else clean.double().cpu()
    kinds = {"live": ("live", "live"), "frozen": ("frozen", "tangent"), "reencoded": ("frozen", "tangent")}[mode]
    observed, tangent = (_observed(model, targets, final - stream, embeddings, kind, before) for kind in kinds)
    active = model.sources.all_active
    layers = torch.cat([torch.full_like(a.features, layer) for layer, a in enumerate(active)])
    places = torch.stack([layers, *(torch.cat([getattr(a, n) for a in active]) for n in ("positions", "features"))])
    values = torch.cat([a.values for a in active])
    predictions = {}
    if mode == "live" and targets:
        predictions = {"tower": tower_predictions(model, sets, targets), "moved": tower_moves(model, sets, targets)}
    predicted_changes = None
    if graph is not None:
        changes = [changes_of(graph, nodes) for nodes in sets]
        same = [t.name for t in graph.targets] == [t.name for t in targets]
        said = {rows: predicted(graph, changes, rows) for rows in ("frozen", "tangent")}
        predictions |= {rows: p.targets.T for rows, p in said.items()} if same else {}
        predicted_changes = _placed(graph, said["frozen"].activations, places)
    return Effects(
        mode,
        tuple(sets),
        targets,
        before,
        observed,
        tangent,
        predictions,
        F.cosine_similarity(embeddings.double(), model.seen.embedding.double(), dim=-1).cpu(),
        places.cpu(),
        values.cpu(),
        None if found.codes is None else (found.codes - values).cpu(),
        predicted_changes,
    )


def _observed(
    model: ImageModel, targets: Sequence[Target], change: Tensor, embeddings: Tensor, kind: str, before: Tensor
) -> Tensor:
    """`(sets, targets)` float64."""
    columns = []
    for index, target in enumerate(targets):
        if kind == "live":
            columns.append(target_values(model.parts, embeddings, target).double().cpu() - before[index])
        elif kind == "frozen" and model.parts.read_out.other is not None:
            columns.append(torch.full((len(change),), float("nan"), dtype=torch.float64))
        else:
            row = model.row(target, kind)  # type: ignore[arg-type]
            columns.append((change * row.gradient).sum((1, 2)).double().cpu())
    return torch.stack(columns, 1) if columns else torch.zeros(len(change), 0, dtype=torch.float64)


def changes_of(graph: Graph, nodes: NodeSet) -> dict[int, float]:
    """Relative changes of a graph's nodes that a set asks for.

    Raises:
        UserError: a node that the graph does not have: a feature that does not fire there cannot be predicted.
    """
    table = graph.nodes
    out: dict[int, float] = {}
    for edit in nodes:
        here = table.of(edit.kind) & (table.layer == edit.layer)
        if edit.kind == "feature":
            here &= table.feature == edit.feature
        elif edit.kind == "bias":
            here &= table.feature == 1
            if edit.position is not None:
                raise UserError(f"{edit}: a graph's bias is one node for all positions: leave the position out")
            if graph.about.get("linear_skip"):
                raise UserError(f"{edit}: with a linear skip a graph's bias holds the skip's constant as well")
        if edit.position is not None:
            here &= table.position == edit.position
        found = here.nonzero().flatten().tolist()
        everywhere = edit.position is None and edit.kind == "feature" and len(found) < len(table.position_names)
        if edit.action == "set" and edit.value != 0 and (not found or everywhere):
            raise UserError(f"{edit}: this feature does not fire there, so that the graph has no node to predict from")
        for index in found:
            if edit.kind == "feature":
                code = float(table.activation[index])
                out[index] = pinned_code(edit, code) / code - 1
            else:
                out[index] = edit.value - 1
    return out


def _placed(graph: Graph, activations: Tensor, places: Tensor) -> Tensor:
    """`(sets, sources)` predicted changes of codes; NaN for features that are no nodes."""
    table = graph.nodes
    features = table.of("feature").nonzero().flatten()
    base = int(places[2].max()) + 1 if places.numel() else 1
    base = max(base, int(table.feature.max()) + 1)

    def key(layer: Tensor, position: Tensor, feature: Tensor) -> Tensor:
        return (layer * len(table.position_names) + position) * base + feature

    known = key(table.layer[features], table.position[features], table.feature[features])
    wanted = key(*places.cpu())
    out = torch.full((activations.shape[1], len(wanted)), float("nan"), dtype=torch.float64)
    at = torch.searchsorted(known, wanted).clamp(max=max(len(known) - 1, 0))
    if len(known):
        hit = known[at] == wanted
        out[:, hit] = activations[features[at[hit]]].T
    return out
