"""Whether graphs predict interventions: nodes of many images taken away and doubled, prediction beside observation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis.circuits.attribution import attribute
from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.circuits.image_model import ImageModel, model_of_image
from clt_lightning.analysis.circuits.intervention import intervene_on
from clt_lightning.analysis.circuits.nodeset import NodeSet
from clt_lightning.analysis.effects import total_effects
from clt_lightning.analysis.effects.check import Agreement, agreement
from clt_lightning.analysis.target import Target
from clt_lightning.analysis.tower import observe
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.transcoder import CrossLayerTranscoder

#: Comparisons: what is said, what is observed, in words
COLUMNS = {
    "frozen": ("frozen rows", "everything held"),
    "reencoded": ("frozen rows", "codes read anew"),
    "live_frozen": ("frozen rows", "live model"),
    "live_tangent": ("tangent rows", "live model"),
    "live_tower": ("tangent tower", "live model"),
    "live_moved": ("moved tower", "live model"),
    "live_gradient": ("live gradient", "live model"),
}
_SCALES = (0.0, 2.0)
#: Most nodes of a set that is taken away together
SUPERNODE = 5


@dataclass(frozen=True)
class Validation:
    """Predicted and observed changes, node by node.

    Attributes:
        table: columns of equal length: `image`, `layer`, `position`, `feature`, `kind` (0: among the most influential,
            1: drawn from the other features, 2: a set of several), `scale`, `predicted_frozen`, `predicted_tangent`,
            `predicted_tower`, `predicted_moved`, `predicted_gradient`, `observed_frozen`, `observed_reencoded`,
            `observed_live`.
        agreements: by comparison (`COLUMNS`) and part (`all`, `top`, `random`, `sets`, `layer_<l>`).
    """

    table: dict[str, np.ndarray] = field(repr=False)
    agreements: dict[str, dict[str, Agreement]]

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the table."""
        return {name: {part: a.to_json() for part, a in parts.items()} for name, parts in self.agreements.items()}


def validate(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    images: Sequence[Float[Tensor, "*one 3 size size"]],
    targets: Sequence[Target] | Callable[[int], Target],
    nodes: int = 60,
    *,
    sets: int = 5,
    draws: int = 1000,
    seed: int = 0,
    max_nodes: int = 20_000,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Validation:
    """Compare what graphs of images say with what happens.

    Half of the nodes of an image are its most influential features, half are drawn from the others; each is taken away
    (scale 0) and doubled (scale 2). Beside them, sets of up to `SUPERNODE` of the most influential, drawn, are taken
    away together.

    Args:
        clip: the backbone.
        clt: its transcoder.
        images: `(3, size, size)` each, preprocessed.
        targets: what is read, of each image; or a function of the image's number.
        nodes: nodes of an image.
        sets: sets of an image.
        draws: resamples of images behind the intervals.
        seed: of the draws.
        max_nodes: features that a graph may have; predictions need all that are active.
        dtype: of graphs and interventions.
        progress: say how far it is.

    Raises:
        UserError: no images, or one with more active features than `max_nodes`.
    """
    if not len(images):
        raise UserError("validation needs at least one image")
    if nodes < 2:
        raise UserError(f"validation needs at least 2 nodes per image, got {nodes}")
    rng = np.random.default_rng(seed)
    parts: list[dict[str, np.ndarray]] = []
    with Progress("validation", len(images), "images", show=progress) as bar:
        for number, image in enumerate(images):
            target = targets(number) if callable(targets) else targets[number]
            model = model_of_image(clip, clt, image, dtype, "through")
            graph = attribute(clip, clt, image, target, skip="through", max_nodes=max_nodes, dtype=dtype)
            parts.append(_of_image(model, graph, target, number, nodes, sets, rng))
            bar.update()
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Validation(table, agreements_of(table, clt.n_layers, draws, seed))


def _of_image(
    model: ImageModel,
    graph: Graph,
    target: Target,
    number: int,
    nodes: int,
    sets: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    everyone = graph.top(len(graph.nodes))
    if not everyone:
        raise UserError(f"no feature is active in image {number}: there is nothing to take away")
    top = everyone[: (nodes + 1) // 2]
    others = everyone[len(top) :]
    drawn = rng.choice(others, min(nodes - len(top), len(others)), replace=False).tolist() if others else []
    chosen = [*top, *drawn]
    asked = [NodeSet.of_graph(graph, [i], "scale", scale) for scale in _SCALES for i in chosen]
    members = [
        sorted(rng.choice(top, min(int(rng.integers(2, SUPERNODE + 1)), len(top)), replace=False).tolist())
        for _ in range(sets if len(top) > 1 else 0)
    ]
    asked += [NodeSet.of_graph(graph, several) for several in members]
    found = {
        mode: intervene_on(model, asked, mode, target, graph, codes=False) for mode in ("frozen", "reencoded", "live")
    }
    per_node = live_gradients(model, target)
    n = len(graph.nodes)
    at = {(int(a), int(b), int(c)): float(v) for a, b, c, v in per_node}
    gradient = [at.get(_place(graph, i), 0.0) for i in range(n)]
    single = [gradient[i] for i in chosen]
    said = [*(-g for g in single), *single, *(-sum(gradient[i] for i in several) for several in members)]
    table = graph.nodes
    index = np.array(chosen * len(_SCALES), dtype=np.int64)
    total, alone = len(asked), len(index)

    def column(values: Tensor) -> np.ndarray:
        return np.concatenate([values[index].numpy(), np.full(total - alone, -1)])

    kind = np.array([0] * len(top) + [1] * len(drawn))
    scale = np.repeat(_SCALES, len(chosen))
    live = found["live"]
    return {
        "image": np.full(total, number),
        "layer": column(table.layer),
        "position": column(table.position),
        "feature": column(table.feature),
        "kind": np.concatenate([np.tile(kind, len(_SCALES)), np.full(total - alone, 2)]),
        "scale": np.concatenate([scale, np.zeros(total - alone)]),
        "predicted_frozen": live.predicted["frozen"][:, 0].double().numpy(),
        "predicted_tangent": live.predicted["tangent"][:, 0].double().numpy(),
        "predicted_tower": live.predicted["tower"][:, 0].numpy(),
        "predicted_moved": live.predicted["moved"][:, 0].numpy(),
        "predicted_gradient": np.array(said),
        "observed_frozen": found["frozen"].observed[:, 0].numpy(),
        "observed_reencoded": found["reencoded"].observed[:, 0].numpy(),
        "observed_live": live.observed[:, 0].numpy(),
    }


def _place(graph: Graph, index: int) -> tuple[int, int, int]:
    node = graph.nodes[index]
    return (node.layer, node.position, node.feature) if node.kind == "feature" else (-1, -1, -1)


@torch.no_grad()
def live_gradients(model: ImageModel, target: Target) -> list[tuple[int, int, int, float]]:
    """What each active code adds to a target by one gradient of the live model, as (layer, position, feature, effect).

    The backbone's own MLPs and attention react; codes are those of the untouched image (`analysis/effects`).
    """
    clip, clt = model.clip, model.clt
    seen = observe(clip, model.image)
    codes = clt.encode(seen.y if clt.topology == "sae" else seen.x)
    direction = (target.direction * target.scale / clip.logit_scale).to(clip.device)
    effects = total_effects(clip, clt, seen, codes, direction[None, None])
    out = []
    for layer, values in enumerate(effects):
        pairs, _ = codes.layer(layer)
        for position, feature, value in zip(pairs.tokens.tolist(), pairs.features.tolist(), values[0].tolist()):
            out.append((layer, position, feature, value))
    return out


def agreements_of(
    table: dict[str, np.ndarray], n_layers: int, draws: int, seed: int
) -> dict[str, dict[str, Agreement]]:
    """Correlation with its interval over images, slope and signs of each comparison, altogether and by part."""
    parts: dict[str, np.ndarray] = {"all": table["kind"] < 2, "top": table["kind"] == 0, "random": table["kind"] == 1}
    parts |= {f"layer_{layer}": table["layer"] == layer for layer in range(n_layers)}
    parts["sets"] = table["kind"] == 2
    columns = {
        "frozen": ("predicted_frozen", "observed_frozen"),
        "reencoded": ("predicted_frozen", "observed_reencoded"),
        "live_frozen": ("predicted_frozen", "observed_live"),
        "live_tangent": ("predicted_tangent", "observed_live"),
        "live_tower": ("predicted_tower", "observed_live"),
        "live_moved": ("predicted_moved", "observed_live"),
        "live_gradient": ("predicted_gradient", "observed_live"),
    }
    return {
        name: {
            part: agreement(table[a][rows], table[b][rows], table["image"][rows], draws, seed)
            for part, rows in parts.items()
            if rows.any()
        }
        for name, (a, b) in columns.items()
    }


def lines(found: Validation, width: int | None = None) -> list[str]:
    """The table of a validation, as text: by layer and part, for each comparison correlation, slope and signs."""
    from clt_lightning.core.table import Column, lay_out

    names = list(found.agreements["frozen"])
    words = {"all": "all nodes", "top": "most influential", "random": "drawn", "sets": "sets of nodes"}
    labels = Column("", [words.get(name, name.replace("_", " ")) for name in names], 17, left=True)
    columns = [Column("n", [f"{found.agreements['frozen'][name].n:,}" for name in names], 7)]
    for name, (said, observed) in COLUMNS.items():
        parts = [found.agreements[name][part] for part in names]
        group = f"{said}, {observed}"
        cells = [f"{a.correlation.value:.3f} [{a.correlation.low:.2f}, {a.correlation.high:.2f}]" for a in parts]
        columns.append(Column("correlation", cells, 20, group))
        columns.append(Column("slope", [f"{a.slope:.2f}" for a in parts], 7, group))
        columns.append(Column("signs", [f"{a.signs:.0%}" for a in parts], 7, group))
    return lay_out(labels, columns, width)


def images_of(batches: Iterable[dict[str, Any]]) -> tuple[list[Tensor], list[str]]:
    """Images and keys of batches."""
    images: list[Tensor] = []
    keys: list[str] = []
    for batch in batches:
        images += list(batch["image"])
        keys += list(batch["key"])
    return images, keys
