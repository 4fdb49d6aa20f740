"""Graphs in which attention is nodes too: features of what attention adds to the stream, or sparse attention's units.

With patterns held, the code of either is a sum over what was written before it at any position, and it writes into the
stream at its own position. Paths end at it as they end at the MLPs' features, so that no edge crosses an attention
unseen. What is left over is an error node of each layer and position.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis.circuits.attention_nodes import AttentionNodes, Reading, nodes_of_attention
from clt_lightning.analysis.circuits.edges import Edges
from clt_lightning.analysis.circuits.estimate import (
    Estimate,
    check_memory,
    count_edges,
    finishing_bytes,
    image_bytes,
)
from clt_lightning.analysis.circuits.graph import Graph, with_influence
from clt_lightning.analysis.circuits.image_model import ImageModel, Skip, model_of_image
from clt_lightning.analysis.circuits.layout import lay_out
from clt_lightning.analysis.circuits.making import BLOCK
from clt_lightning.analysis.circuits.nodes import BIASES, make_nodes
from clt_lightning.analysis.circuits.read_out import ReadOutRow
from clt_lightning.analysis.circuits.sources import encoder_rows
from clt_lightning.analysis.target import Target
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.core.say import say
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention, SparseAttention

#: Numbers of the stream that a batch of backwards holds at once
_BATCH_NUMBERS = 8_000_000


@torch.no_grad()
def attribute_with_attention(
    clip: Any,
    clt: CrossLayerTranscoder,
    attention: AnyAttention,
    image: Float[Tensor, "*images 3 size size"] | PIL.Image.Image,
    target: Target | Sequence[Target],
    *,
    max_nodes: int = 20_000,
    skip: Skip = "node",
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
    about: dict[str, Any] | None = None,
) -> Graph:
    """The graph of one image, with features of what attention adds as nodes beside those of the MLPs.

    Beside the nodes of `attribute`: kinds `attention` (code, layer, position, feature) and `attention_error`, and bias
    nodes `attention read`. Books add up as there: edges into a node sum to its code or the target's value. Targets
    count alike.

    Args:
        clip: the backbone.
        clt: the transcoder of its MLPs.
        attention: an autoencoder (topology `sae`) at `attn_out` of all blocks, or sparse attention on the model's own
            patterns, whose units then read the stream at the keys.
        image: `(3, size, size)`, preprocessed, or a PIL image.
        target: what to explain, or several.
        max_nodes: active features of both kinds; all of them are nodes, so more are refused.
        skip: as in `attribute`.
        dtype: float32 or float64.
        progress: say how far it is.
        about: plain values to keep.

    Raises:
        UserError: an autoencoder of another site, units of another backbone, too many active features, or a read-out
            that is no sum.
    """
    began = time.monotonic()
    targets = (target,) if isinstance(target, Target) else tuple(target)
    if not targets:
        raise UserError("a graph needs at least one target")
    model = model_of_image(clip, clt, image, dtype, skip)
    rows = _Rows(model, nodes_of_attention(model, attention))
    reads = rows.reads()
    if len(reads) > max_nodes:
        raise UserError(
            f"{len(reads):,} features are active, of MLPs and attention together, and all of them are nodes: raise "
            f"max_nodes ({max_nodes:,})"
        )
    batch = max(8, _BATCH_NUMBERS // (model.parts.n_positions * clt.d_model))
    held = image_bytes(model)
    expected = Estimate(len(reads), len(reads), held + rows.peak_bytes(batch))
    check_memory(expected, held, "there is no growth with attention's features; fewer active features need less")
    if progress:
        say(f"attribution: {expected}")
    store, done = rows.sources.like.new_empty(len(reads), rows.n_columns, device="cpu"), 0
    with Progress("attribution", len(reads), "rows", show=progress) as bar:
        for layer, kind, members in rows.groups(reads):
            for some in members.split(batch):
                store[done : done + len(some)] = rows.features(layer, kind, some)
                done += len(some)
                bar.update(len(some))
    frozen = rows.targets([model.row(one, "frozen") for one in targets]).cpu()
    tangent = rows.targets([model.row(one, "tangent") for one in targets]).cpu()
    facts = {
        "backbone": model.parts.name,
        "grid": list(model.parts.grid),
        "n_prefix": model.parts.n_prefix,
        "n_layers": clt.n_layers,
        "n_features": clt.n_features,
        "n_attention_features": attention.n_features,
        "attention_nodes": "units" if isinstance(attention, SparseAttention) else "autoencoder",
        "topology": clt.topology,
        "linear_skip": clt.W_skip is not None,
        "image_size": model.image.shape[-1],
        "active": len(reads),
        "max_nodes": max_nodes,
        "tower": "held",
        "dtype": str(dtype).removeprefix("torch."),
    }
    graph = rows.graph(store, frozen, tangent, targets)
    del store  # influence needs as much again
    return replace(with_influence(graph), about=facts | (about or {}) | {"seconds": time.monotonic() - began})


class _Rows:
    """Rows over all sources: those of the MLPs' graph, then attention's features, errors and read constants."""

    def __init__(self, model: ImageModel, outputs: AttentionNodes) -> None:
        self.model, self.outputs = model, outputs
        self.sources, self.tower = model.sources, model.tower
        L, P = self.sources.n_layers, self.sources.n_positions
        reached = model.parts.read_out.pool != 0
        # after the last attention nothing mixes positions: what it adds elsewhere is never read
        last = outputs.active[-1]
        self.active = [*outputs.active[:-1], last.keep(reached[last.positions])]
        self.starts = [self.sources.n_columns]
        for part in self.active:
            self.starts.append(self.starts[-1] + len(part))
        self.errors_at = self.starts[-1]
        self.reads_at = self.errors_at + L * P
        self.n_columns = self.reads_at + L

    def reads(self) -> Tensor:
        """`(reads,)` columns of all features, those of MLPs first."""
        own = torch.arange(self.sources.n_features)
        return torch.cat([own, torch.arange(self.starts[0], self.starts[-1])])

    def groups(self, reads: Tensor) -> Iterator[tuple[int, str, Tensor]]:
        """The reads by layer and kind, in their own order: numbers within the layer."""
        for kind, active in (("feature", self.sources.active), ("attention", self.active)):
            for layer, part in enumerate(active):
                if len(part):
                    yield layer, kind, torch.arange(len(part), device=self.sources.like.device)

    def features(self, layer: int, kind: str, some: Tensor) -> Tensor:
        """`(some, columns)` rows of features of one layer."""
        sources, like = self.sources, self.sources.like
        out = like.new_zeros(len(some), self.n_columns)
        gradient = like.new_zeros(len(some), *like.shape[1:])
        part = (sources.active if kind == "feature" else self.active)[layer]
        positions, features = part.positions[some], part.features[some]
        index = torch.arange(len(some), device=like.device)
        if kind == "feature":
            gradient[index, positions] = encoder_rows(sources.clt, layer, features, like)
            out[:, sources.bias_column(layer, 2)] += sources.read_constants(layer, features, positions)
            injected = sources.read_gradient(layer, gradient)
            self._pull(layer, len(some), out, read=(layer, injected))
        else:
            found = self.outputs.reading(self.tower, layer, features, positions)
            out[:, self.reads_at + layer] += found.constants
            self._pull(layer, len(some), out, reading=(layer, found))
        return out

    def targets(self, read_outs: Sequence[ReadOutRow]) -> Tensor:
        """`(targets, columns)`."""
        final = torch.stack([row.gradient for row in read_outs]).to(self.sources.like)
        out = final.new_zeros(len(final), self.n_columns)
        self._pull(self.sources.n_layers - 1, len(final), out, final=final)
        out[:, self.sources.head_column] += torch.tensor([row.constant for row in read_outs], dtype=out.dtype).to(
            out.device
        )
        return out

    def _pull(
        self,
        top: int,
        n: int,
        out: Tensor,
        read: tuple[int, Tensor] | None = None,
        reading: tuple[int, Reading] | None = None,
        final: Tensor | None = None,
    ) -> None:
        steps = self.tower.pull(
            top,
            n,
            read=None if read is None else lambda layer: read[1] if layer == read[0] else None,
            final=final,
            attending=lambda layer: reading[1].by_output if reading is not None and layer == reading[0] else None,
            entering=lambda layer: reading[1].by_stream if reading is not None and layer == reading[0] else None,
        )
        own = out[:, : self.sources.n_columns]
        for step in steps:
            if step.place == "attention":
                self._add_attention(step.layer, step.gradient, out)
            else:
                self.sources.add(step, own)

    def _add_attention(self, layer: int, gradient: Tensor, out: Tensor) -> None:
        outputs, P = self.outputs, self.sources.n_positions
        part, begin = self.active[layer], self.starts[layer]
        for position in range(P):
            a, b = part.offsets[position], part.offsets[position + 1]
            if a < b:
                rows = outputs.decoders(layer, part.features[a:b]) * outputs.sizes[layer][position]
                out[:, begin + a : begin + b] += (gradient[:, position] @ rows.T) * part.values[a:b]
        at = self.errors_at + layer * P
        out[:, at : at + P] += torch.einsum("rpd,pd->rp", gradient, outputs.errors[layer])
        out[:, self.sources.bias_column(layer, 0)] += torch.einsum("rpd,pd->r", gradient, outputs.rest[layer])

    def peak_bytes(self, batch: int) -> int:
        """Bytes at the peak of making the graph, beyond what is kept of the image."""
        layout, like = lay_out(self.sources, False), self.sources.like
        L, P = self.sources.n_layers, self.sources.n_positions
        places = torch.cat(
            [layout.position, *(part.positions.cpu() for part in self.active), torch.arange(P).repeat(L)]
        )
        # a block's attention comes before its MLP, and both after what is below
        own = [torch.full((len(part),), 2 * layer) for layer, part in enumerate(self.active)]
        layers = torch.cat([layout.layer * 2 + 1, *own, 2 * torch.arange(L).repeat_interleave(P)])
        # attention reads every position; what an MLP reads of others comes by attention's nodes
        edges = count_edges(torch.cat(own), layers)
        for position in range(P):
            here = places == position
            edges += count_edges(layers[: layout.n_features][here[: layout.n_features]], layers[here])
        readers, n, item = layout.n_features + sum(len(part) for part in own), self.n_columns, like.element_size()
        # two streams more than in a graph of MLPs: what attention's features read
        at_once = min(batch, max(len(part) for part in (*self.active, *self.sources.active)))
        backward = at_once * (8 * like.numel() + 2 * n) * item
        store = readers * n
        return max(store * item + backward, finishing_bytes(store, edges, 2 * BLOCK * n, item))

    def graph(self, rows: Tensor, held: Tensor, tangent: Tensor, targets: tuple[Target, ...]) -> Graph:
        """The graph of rows in the order of `reads`, without influence."""
        layout, L, P = lay_out(self.sources, False), self.sources.n_layers, self.sources.n_positions
        n = layout.n_features
        own = (layout.layer, layout.position, layout.feature)
        parts: list[tuple[str, Tensor, Tensor, Tensor, Tensor | None]] = [
            ("feature", *(column[:n] for column in own), layout.activation)  # type: ignore[list-item]
        ]
        at = n
        for kind, count in layout.kinds:
            parts.append((kind, *(column[at : at + count] for column in own), None))  # type: ignore[arg-type]
            at += count
        layers = torch.cat([torch.full((len(a),), layer) for layer, a in enumerate(self.active)])
        places, features, codes = (
            torch.cat([getattr(a, name) for a in self.active]).cpu() for name in ("positions", "features", "values")
        )
        grid, every = torch.arange(L * P), torch.arange(L)
        parts.append(("attention", layers, places, features, codes))
        parts.append(("attention_error", grid // P, grid % P, torch.full_like(grid, -1), None))
        reads = torch.full_like(every, BIASES.index("attention read"))
        parts.append(("bias", every, torch.full_like(every, -1), reads, None))
        index = torch.arange(len(targets))
        parts.append(("target", index * 0 - 1, index * 0 - 1, index, held.sum(1)))
        nodes = make_nodes(parts, self.model.parts.position_names(), [target.name for target in targets])
        total = len(nodes)

        def wide(block: Tensor) -> Tensor:
            return torch.cat([block, block.new_zeros(len(block), len(targets))], 1)

        readers = self.reads()
        blocks = zip(rows.split(BLOCK), readers.split(BLOCK))
        found = [Edges.from_rows(wide(block), numbers, total) for block, numbers in blocks]
        found.append(Edges.from_rows(wide(held), torch.arange(total - len(targets), total), total))
        weights = torch.full((len(targets),), 1.0 / len(targets), dtype=torch.float64)
        skip = self.model.skip if self.model.clt.W_skip is not None else "through"
        return Graph(nodes, Edges.cat(found), targets, weights, wide(tangent), False, skip, {})
