"""What a graph will cost, before it is made: bytes are counted, seconds follow from two backwards that are timed."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.image_model import ImageModel
from clt_lightning.analysis.circuits.layout import Layout
from clt_lightning.analysis.circuits.making import BLOCK, RANK_EVERY, Maker, first_of, partial_influence
from clt_lightning.analysis.circuits.pace import Pace, Stopwatch, Timed
from clt_lightning.core.errors import UserError
from clt_lightning.core.memory import available
from clt_lightning.core.people import count, duration

clock = time.monotonic
#: Rows of a layer that tell where influence goes from it
_PILOTS = 12
#: Numbers that say where an active feature is, as a source and as a node to be
_PLACES = 12
#: Of all rows, one in so many is made to be timed, a batch at most
_TIMED = 8


@dataclass(frozen=True)
class Estimate:
    """What a graph costs beyond the backbone and the transcoder.

    Attributes:
        active: active features at positions that can reach the target.
        rows: rows (backwards) that are made.
        bytes: main memory at the peak.
        seconds: time of all of it, this estimate included; None where it was not measured.
    """

    active: int
    rows: int
    bytes: int
    seconds: float | None = None

    def __str__(self) -> str:
        time = "" if self.seconds is None else f", about {duration(self.seconds)}"
        return f"{count(self.active)} active features, {count(self.rows)} rows, about {self.bytes / 1e6:,.0f} MB{time}"


def estimate(maker: Maker, began: float | None = None) -> Estimate:
    """What a graph will cost.

    Args:
        maker: what makes it.
        began: when the work on it began, by `clock`; None: time is not asked for, and nothing is computed but the
            targets' rows.
    """
    queues = foreseen(maker, piloted=began is not None)
    chosen = torch.cat(queues).sort().values
    layers = layers_of_nodes(maker.layout, chosen)
    edges = count_edges(layers[: len(chosen)], layers) + len(maker.targets) * len(layers)
    needed = image_bytes(maker.model) + peak_bytes(maker, edges, len(layers))
    seconds = None
    if began is not None:
        seconds = seconds_of(maker, queues, edges)
        seconds += clock() - began
    return Estimate(maker.model.sources.n_features, maker.n_rows, needed, seconds)


def image_bytes(model: ImageModel) -> int:
    """Bytes of what is kept of the image: what is held, what writes, and the tower's weights in another type."""
    seen, clt = model.seen, model.clt
    held = sum(h.gate.numel() + h.pattern.numel() for h in seen.held)
    # streams, middles, x, y; errors, what is rebuilt and skipped, constants of attention
    kept = held + (7 + (clt.W_skip is not None)) * len(seen.held) * seen.streams[0].numel()
    copied = _numbers(model.parts) if model.copied else 0
    tables = _PLACES * 8 * model.sources.n_features
    return (kept + copied) * model.image.element_size() + tables


def _numbers(part: Any) -> int:
    """Numbers of all tensors of a tower's parts."""
    if isinstance(part, Tensor):
        return part.numel()
    if isinstance(part, list | tuple):
        return sum(_numbers(item) for item in part)
    return sum(_numbers(getattr(part, f.name)) for f in fields(part)) if is_dataclass(part) else 0


def layers_of_nodes(layout: Layout, chosen: Tensor) -> Tensor:
    """Layers of all nodes that write, those of the chosen features first; -1 of inputs."""
    layers = layout.layer[: layout.n_features]
    left = torch.ones(layout.n_features, dtype=torch.bool)
    left[chosen] = False
    return torch.cat([layers[chosen], layers[left].unique(), layout.layer[layout.n_features :]])


def count_edges(rows: Tensor, columns: Tensor) -> int:
    """Edges into features: each reads what is written below its layer, and two constants of its own.

    Args:
        rows: `(rows,)` layers of the features that are nodes.
        columns: `(columns,)` layers of all nodes that write; -1 for inputs.
    """
    below = torch.bincount(columns + 1).cumsum(0)
    return int((below[rows] + 2).sum())


def peak_bytes(maker: Maker, edges: int, nodes: int) -> int:
    """Bytes at the peak of making a graph of so many edges and nodes, beyond what is kept of the image."""
    columns, item = maker.layout.n_columns, maker.model.image.element_size()
    store = maker.n_rows * columns
    block = min(BLOCK, maker.n_rows)
    ranking = 3 * block * columns if maker.grows else 0
    making = (store + max(min(maker.batch, maker.n_rows) * _row_numbers(maker), ranking)) * item
    return max(making, finishing_bytes(store, edges, block * (columns + nodes), item))


def finishing_bytes(store: int, edges: int, block: int, item: int) -> int:
    """Bytes at the peak of making edges of rows, and of influence along them.

    Args:
        store: numbers of all rows.
        edges: how many.
        block: numbers of the rows that become edges at once.
        item: bytes of a number.
    """
    edge = 16 + item  # two numbers of nodes, and the weight
    joining = store * item + max(edge * edges + block * item, 2 * edge * edges)
    return max(joining, (edge + 40) * edges)  # influence is in float64, after the rows are gone


def check_memory(expected: Estimate, held: int, advice: str) -> None:
    """A UserError with some advice where a graph does not fit in free memory, of which `held` bytes are its already."""
    free = available()
    if free is not None and expected.bytes - held > free:
        raise UserError(f"this graph needs about {expected.bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: {advice}")


def _row_numbers(maker: Maker) -> int:
    """Numbers that a backward has at work for each of its rows, at most."""
    model, sources = maker.model, maker.model.sources.n_columns
    stream, hidden, scores = model.seen.streams[0], model.seen.held[0].gate, model.seen.held[0].pattern
    passing = 10 * stream.numel() + 4 * scores.numel() if model.tangent else 6 * stream.numel()
    if model.clt.topology == "sae":
        passing = max(passing, 4 * stream.numel() + 2 * hidden.numel())
    sorting = stream.numel() + 2 * sources
    return max(passing + sources, sorting + (maker.layout.n_columns if maker.layout.summed else 0))


def foreseen(maker: Maker, piloted: bool = True) -> list[Tensor]:
    """The features that become nodes, in the queues in which they are computed.

    The first queue is known from the targets' rows. What follows is ranked by where a few rows of each layer say that
    influence goes: growth favours shallow layers.

    Args:
        maker: what makes the graph.
        piloted: whether such rows may be computed; without them, all are ranked by the targets' rows.
    """
    queues = [maker.queue([], maker.held[:0])]
    left = maker.n_rows - len(queues[0])
    if not left:
        return queues
    reach = reach_of(maker) if piloted else maker.held.abs().sum(0)[: maker.layout.n_features]
    reach[queues[0].to(reach.device)] = -1.0
    while left:
        queues.append(first_of(reach, min(left, RANK_EVERY * maker.batch)))
        reach[queues[-1].to(reach.device)] = -1.0
        left -= len(queues[-1])
    return queues


def reach_of(maker: Maker) -> Tensor:
    """`(features,)` influence, as far as a few rows of each layer tell."""
    layout, held = maker.layout, maker.held
    layers = layout.layer[: layout.n_features]

    def shares(rows: Tensor) -> Tensor:
        size = rows.abs() * layout.counted
        return size / size.sum(1, keepdim=True).clamp(min=1e-10)

    reach = maker.weights.to(held) @ shares(held)
    for layer in sorted(set(layers.tolist()), reverse=True):
        if layer == 0:
            break
        here = (layers == layer).nonzero().flatten()
        mine = reach[here.to(reach.device)].cpu()
        best = mine.argsort(descending=True, stable=True)[:_PILOTS]
        weight = mine[best].to(held)
        # the strongest stand for all of their layer
        carried = weight @ shares(maker.rows(here[best])) / weight.sum().clamp(min=1e-30)
        reach = reach + carried * mine.sum().to(held)
    return reach[: layout.n_features].clone()


def seconds_of(maker: Maker, queues: list[Tensor], edges: int) -> float:
    """Seconds that a graph takes after the targets' rows are known, from those of a few of its rows."""
    layout = maker.layout
    layers = layout.layer[: layout.n_features]
    _ = maker.tangent  # part of the graph, and of the time so far
    if not len(layers):
        return 0.0
    deepest = (layers == layers.max()).nonzero().flatten()
    large = min(maker.batch, max(2, maker.n_rows // _TIMED))
    timed = []
    for n in (max(1, large // 8), large):
        watch = Stopwatch(clock)
        rows = maker.rows(deepest[torch.arange(n) % len(deepest)], watch.passed)
        watch.passed(None)
        timed.append(Timed(n, watch.steps))
    pace = Pace(*timed)
    batches = [layers[some] for queue in queues for some in queue.split(maker.batch)]
    backwards = sum(pace.seconds(torch.bincount(begun)) for begun in batches)
    return backwards + _ranking(maker, queues, rows) + _finishing(maker, torch.cat(queues).sort().values, edges, rows)


def _ranking(maker: Maker, queues: list[Tensor], rows: Tensor) -> float:
    """Seconds of ranking what comes next, from ranking some rows."""
    if not maker.grows:
        return 0.0
    layout = maker.layout
    began = clock()
    partial_influence(rows, torch.arange(len(rows)), maker.held, maker.weights, layout.counted, layout.layer)
    known = torch.tensor([len(queue) for queue in queues[:-1]]).cumsum(0)
    return (clock() - began) / len(rows) * float(known.sum())


def _finishing(maker: Maker, chosen: Tensor, edges: int, rows: Tensor) -> float:
    """Seconds of making edges of rows, and of influence along them, from some rows."""
    columns, _ = maker.layout.columns(chosen)
    n = int(columns.max()) + 1
    began = clock()
    # into nodes that nothing comes from: two steps of influence, of which the second ends it
    some = maker.edges(rows, torch.arange(n, n + len(rows)), columns, n + len(rows))
    made = clock()
    counted = torch.ones(some.n, dtype=torch.bool)
    shares = some.shares(counted)
    shared = clock()
    some.influence(shares, counted)
    carried = clock() - shared
    levels = len(maker.layout.layer[chosen].unique()) + 2
    # with biases and without; scores are another pass over the edges
    passes = 3 * (shared - made) + 2 * levels * carried / 2
    return (made - began) / len(rows) * len(chosen) + passes / max(len(some), 1) * edges
