"""Making the graph of one image: which nodes, in which order their rows are computed, and how rows become edges."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis.circuits.edges import Edges
from clt_lightning.analysis.circuits.estimate import Estimate, memory, seconds_of
from clt_lightning.analysis.circuits.graph import Graph, with_influence
from clt_lightning.analysis.circuits.image_model import ImageModel, Skip, model_of_image
from clt_lightning.analysis.circuits.layout import Layout, lay_out
from clt_lightning.analysis.circuits.rows import Reads, feature_rows, target_rows
from clt_lightning.analysis.target import Target
from clt_lightning.core.errors import UserError
from clt_lightning.core.memory import available
from clt_lightning.core.progress import Progress
from clt_lightning.core.say import say
from clt_lightning.transcoder import CrossLayerTranscoder

Positions = Literal["each", "summed"]
Tower = Literal["held", "tangent"]
#: Features that a graph has at most, if nothing else is asked for
MAX_NODES = 4096
#: Numbers of the stream that a batch of backwards holds at once
_BATCH_NUMBERS = 8_000_000
#: Rows of a layer that tell where influence goes from it, for the estimate
_PILOTS = 12
#: Batches of rows between two rankings of what is to come next
_RANK_EVERY = 4


def attribute(
    clip: Any,
    clt: CrossLayerTranscoder,
    image: Float[Tensor, "*images 3 size size"] | PIL.Image.Image,
    target: Target | Sequence[Target],
    *,
    weights: Sequence[float] | None = None,
    positions: Positions = "each",
    max_nodes: int = MAX_NODES,
    skip: Skip = "node",
    tower: Tower = "held",
    dtype: torch.dtype = torch.float32,
    batch_size: int | None = None,
    progress: bool = False,
    about: dict[str, Any] | None = None,
) -> Graph:
    """The attribution graph of one image.

    Attention patterns, norm scales and the embedding's norm are held at the image's values, and so is which features
    fire: every pre-activation and every target is then a sum over what was written before it (docs/circuits.md).

    Args:
        clip: the backbone.
        clt: its transcoder.
        image: `(3, size, size)`, preprocessed, or a PIL image.
        target: what to explain, or several.
        weights: how much each target counts in influence; None: equal shares. Probabilities, for logits of classes.
        positions: `each`: a node is a feature at a position; `summed`: a feature at all its positions.
        max_nodes: at most so many features are nodes; the others, least influential, are summed to one node a layer.
        skip: `node`: what a transcoder's linear skip adds is a node at each position, not followed further; `through`:
            the stream passes it.
        tower: `held`: the books: everything is held, and edges add up. `tangent`: patterns, norms and gates move, to
            first order: what edges leave over is in the biases. For predictions of the live model (docs/circuits.md).
        dtype: float32; float64 for books that add up to 1e-10.
        batch_size: rows in one backward; None: as many as fit well.
        progress: say what it will cost, and how far it is.
        about: plain values to keep with the graph, such as the image's key.

    Raises:
        UserError: arguments that do not fit, an architecture that is not known, or too little memory.
    """
    began = time.monotonic()
    targets = (target,) if isinstance(target, Target) else tuple(target)
    shares = _weights(weights, len(targets))
    if positions not in ("each", "summed"):
        raise UserError(f"positions must be each or summed, got {positions!r}")
    for name, value in (("max_nodes", max_nodes), ("batch_size", 1 if batch_size is None else batch_size)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
    if tower not in ("held", "tangent"):
        raise UserError(f"tower must be held or tangent, got {tower!r}")
    model = model_of_image(clip, clt, image, dtype, skip, tower == "tangent")
    layout = lay_out(model.sources, positions == "summed")
    size = model.image.shape
    per_row = model.parts.n_positions * clt.d_model
    batch = batch_size or max(8, min(256, _BATCH_NUMBERS // per_row))
    maker = _Maker(model, layout, targets, shares, min(batch, max(layout.n_features, 1)), max_nodes)
    expected = maker.estimate(timed=progress)
    free = available()
    if free is not None and expected.bytes > free:
        raise UserError(
            f"this graph needs about {expected.bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: lower max_nodes "
            f"({max_nodes}), or sum positions"
        )
    if progress:
        say(f"attribution: {expected}")
    graph = maker.make(progress)
    facts = {
        "backbone": model.parts.name,
        "grid": list(model.parts.grid),
        "n_prefix": model.parts.n_prefix,
        "n_layers": clt.n_layers,
        "n_features": clt.n_features,
        "topology": clt.topology,
        "linear_skip": clt.W_skip is not None,
        "image_size": size[-1],
        "active": expected.active,
        "max_nodes": max_nodes,
        "tower": tower,
        "dtype": str(dtype).removeprefix("torch."),
    }
    return replace(graph, about=facts | (about or {}) | {"seconds": time.monotonic() - began})


def top_targets(
    head: Float[Tensor, "embed_dim classes"],
    classnames: Sequence[str],
    embedding: Float[Tensor, "*one embed_dim"],
    share: float = 0.95,
    most: int = 10,
    scale: float = 100.0,
) -> tuple[list[Target], list[float]]:
    """The most probable classes, each against the mean of all, with their probabilities as weights.

    Args:
        head: `(embed_dim, classes)` unit columns.
        classnames: their names.
        embedding: `(embed_dim,)` of the image, unit.
        share: classes are taken until their probabilities reach it.
        most: at most so many.
        scale: from cosines to logits.
    """
    chances = (scale * (embedding.double() @ head.double().to(embedding.device))).softmax(0).cpu()
    order = chances.argsort(descending=True)
    n = min(int((chances[order].cumsum(0) < share).sum()) + 1, most, len(order))
    chosen = order[:n].tolist()
    return [Target.centred(head, classnames, c, scale) for c in chosen], chances[chosen].tolist()


def _weights(weights: Sequence[float] | None, n: int) -> Tensor:
    if n == 0:
        raise UserError("a graph needs at least one target")
    if weights is None:
        return torch.full((n,), 1.0 / n, dtype=torch.float64)
    if len(weights) != n or not all(0 <= w < float("inf") for w in weights) or not sum(weights) > 0:
        raise UserError(f"{n} targets need as many weights, none negative and not all 0; got {list(weights)}")
    return torch.tensor([float(w) for w in weights], dtype=torch.float64)


@dataclass
class _Maker:
    """Computes rows, and decides which."""

    model: ImageModel
    layout: Layout
    targets: tuple[Target, ...]
    weights: Tensor
    batch: int
    max_nodes: int

    def estimate(self, timed: bool) -> Estimate:
        layout, like = self.layout, self.model.image
        rows = min(layout.n_features, self.max_nodes)
        others = layout.n_columns - layout.n_features
        needed = memory(
            rows + 2 * len(self.targets),
            layout.n_columns,
            rows + others,
            self.batch,
            self.model.parts.n_positions,
            self.model.clt.d_model,
            self.model.clt.n_layers,
            like.element_size(),
        )
        seconds = None
        if timed and rows > 4 * self.batch:
            seconds = self._time()
        return Estimate(self.model.sources.n_features, rows, needed, seconds)

    def _time(self) -> float:
        """Seconds of all rows to come, from a batch of a deep layer and one of half its depth."""
        layers = self.layout.layer[: self.layout.n_features]
        counts = torch.bincount(layers)
        # what a backward costs hardly shrinks with its rows: only full ones are timed
        full = (counts >= min(self.batch, int(counts.max()))).nonzero().flatten().tolist()
        timed: dict[int, float] = {}
        for layer in sorted({full[-1], full[len(full) // 2]}, reverse=True):
            chosen = (layers == layer).nonzero().flatten()[: self.batch]
            self.rows(chosen[: 1 + len(chosen) // 8])  # the first one reads weights from far away
            began = time.monotonic()
            self.rows(chosen)
            timed[layer] = time.monotonic() - began
        return seconds_of(layers[self._foreseen()], timed, self.batch)

    def _foreseen(self) -> Tensor:
        """The features that growth will choose, as far as a few rows of each layer tell: it favours shallow ones."""
        layout = self.layout
        n, layers = layout.n_features, layout.layer[: layout.n_features]
        if n <= self.max_nodes:
            return torch.arange(n)
        other = self.model.parts.read_out.other is not None or self.model.tangent
        held = self._target_rows("tangent" if other else "frozen")

        def shares(rows: Tensor) -> Tensor:
            size = rows.abs() * layout.counted
            return size / size.sum(1, keepdim=True).clamp(min=1e-10)

        reach = self.weights.to(held) @ shares(held)
        for layer in sorted(set(layers.tolist()), reverse=True):
            if layer == 0:
                break
            here = (layers == layer).nonzero().flatten()
            mine = reach[here.to(reach.device)].cpu()
            best = mine.argsort(descending=True, stable=True)[:_PILOTS]
            weight = mine[best].to(held)
            # the strongest stand for all of their layer
            carried = weight @ shares(self.rows(here[best])) / weight.sum().clamp(min=1e-30)
            reach = reach + carried * mine.sum().to(held)
        return reach[:n].cpu().argsort(descending=True, stable=True)[: self.max_nodes]

    def rows(self, features: Tensor) -> Tensor:
        """`(features, columns)` of some feature nodes."""
        device = self.model.image.device
        row, layer, position, feature = (column.to(device) for column in self.layout.reads(features.cpu()))
        found = feature_rows(self.model.sources, Reads(row, layer, position, feature, len(features)))
        return self.layout.reduce(found)

    def make(self, progress: bool) -> Graph:
        layout, model = self.layout, self.model
        other = model.parts.read_out.other is not None or model.tangent
        tangent = self._target_rows("tangent")
        held = tangent if other else self._target_rows("frozen")
        n = min(layout.n_features, self.max_nodes)
        store = held.new_empty(n, layout.n_columns)
        order: list[Tensor] = []
        done = 0
        with Progress("attribution", n, "rows", show=progress) as bar:
            while done < n:
                queue = self._next(order, store[:done], held, n - done)
                for chosen in queue.split(self.batch):
                    store[done : done + len(chosen)] = self.rows(chosen)
                    done += len(chosen)
                    order.append(chosen)
                    bar.update(len(chosen))
        return self._graph(torch.cat(order) if order else torch.zeros(0, dtype=torch.int64), store, held, tangent)

    def _target_rows(self, kind: Literal["frozen", "tangent"]) -> Tensor:
        return self.layout.reduce(
            target_rows(self.model.sources, [self.model.row(target, kind) for target in self.targets])
        )

    def _next(self, order: list[Tensor], store: Tensor, held: Tensor, wanted: int) -> Tensor:
        """The features to compute next: all there are, layer by layer; or those with most influence so far."""
        layout = self.layout
        if layout.n_features <= self.max_nodes:
            return torch.arange(layout.n_features)
        done = torch.cat(order) if order else torch.zeros(0, dtype=torch.int64)
        reach = partial_influence(store, done, held, self.weights, layout.counted, layout.layer)[
            : layout.n_features
        ].clone()
        reach[done] = -1.0
        chosen = reach.cpu().argsort(descending=True, stable=True)[: min(wanted, _RANK_EVERY * self.batch)]
        # neighbours in depth share a backward
        return chosen.sort().values

    def _graph(self, order: Tensor, store: Tensor, held: Tensor, tangent: Tensor) -> Graph:
        layout = self.layout
        places = order.argsort()
        chosen = order[places]
        columns, n_rest = layout.columns(chosen)
        nodes = layout.nodes(chosen, n_rest, self.model, self.targets, held.sum(1))
        n = len(nodes)

        def among(rows: Tensor) -> Tensor:
            rows = rows.cpu()
            return rows.new_zeros(len(rows), n).index_add_(1, columns, rows)

        parts = []
        for start in range(0, len(chosen), 256):
            block = places[start : start + 256]
            parts.append(Edges.from_rows(among(store[block]), torch.arange(start, start + len(block)), n))
        ends = torch.arange(n - len(self.targets), n)
        parts.append(Edges.from_rows(among(held), ends, n))
        return with_influence(
            Graph(
                nodes,
                Edges.cat(parts),
                self.targets,
                self.weights,
                among(tangent),
                layout.summed,
                self.model.skip if self.model.clt.W_skip is not None else "through",
                {},
            )
        )


def partial_influence(
    store: Tensor, done: Tensor, held: Tensor, weights: Tensor, counted: Tensor, layer: Tensor
) -> Tensor:
    """`(columns,)` influence along the rows that are known so far.

    Args:
        store: `(rows, columns)` known rows of features.
        done: `(rows,)` their columns.
        held: `(targets, columns)` rows of the targets.
        weights: `(targets,)`.
        counted: `(columns,)` 1 for columns that take part in shares, 0 for biases.
        layer: `(columns,)` their layers.
    """
    weights = weights.to(store)

    def carried(rows: Tensor, amount: Tensor) -> Tensor:
        total = rows.new_zeros(rows.shape[1])
        for part, some in zip(rows.split(256), amount.split(256)):
            size = part.abs() * counted
            total += (some / size.sum(1).clamp(min=1e-10)) @ size
        return total

    total = carried(held, weights)
    layers = layer[done]
    # edges go up: what a layer's features have is complete once all layers above have handed theirs down
    for one in sorted(set(layers.tolist()), reverse=True):
        here = (layers == one).nonzero().flatten().to(store.device)
        for some in here.split(256):
            total += carried(store[some], total[done.to(store.device)[some]])
    return total
