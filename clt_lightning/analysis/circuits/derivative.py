"""What the tower says of interventions, without a graph: one derivative, or one forward, for each of them.

The model is the one with the transcoder in the place of the MLPs and the image's own errors added, patterns and norms
at work, which features fire held. How it moves as changed features begin to go to their new codes is what the graph of
`attribute(..., tower="tangent")` gives by `(I - W)^-1`, at the cost of a forward or two instead of a graph
(`tower_predictions`). Where it is when they have arrived (`tower_moves`) holds what patterns, norms and the read-out do
beyond first order, and is no sum over nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.forward import embed_stream
from clt_lightning.analysis.circuits.image_model import ImageModel
from clt_lightning.analysis.circuits.nodeset import NodeSet
from clt_lightning.analysis.circuits.read_out import target_values
from clt_lightning.analysis.circuits.rerun import live_attention, live_mlp, pinned_code
from clt_lightning.analysis.circuits.sources import decoder_rows, encoder_rows
from clt_lightning.analysis.target import Target

#: Numbers of decoder rows and streams gathered at once
_NUMBERS = 24_000_000


@torch.no_grad()
def tower_predictions(model: ImageModel, sets: Sequence[NodeSet], targets: Sequence[Target]) -> Tensor:
    """Predicted changes of targets under interventions, to first order through the whole tower.

    Args:
        model: the image, with the skip passed (`skip="through"`).
        sets: what is changed, each by itself.
        targets: what is read.

    Returns:
        `(sets, targets)` float64.
    """
    return tower_responses(model, sets, targets)[0]


@torch.no_grad()
def tower_moves(model: ImageModel, sets: Sequence[NodeSet], targets: Sequence[Target]) -> Tensor:
    """Predicted changes of targets under interventions: of the tower with the whole change made.

    Args:
        model: the image, with the skip passed (`skip="through"`).
        sets: what is changed, each by itself.
        targets: what is read.

    Returns:
        `(sets, targets)` float64.
    """
    found = [model.image.new_zeros(0, len(targets))]
    found += [_values(model, some, targets)(model.image.new_ones(()))[0] for some in _portions(model, sets)]
    clean = [target_values(model.parts, model.seen.embedding, target)[0] for target in targets]
    before = torch.stack(clean) if clean else model.image.new_zeros(0)
    return (torch.cat(found) - before).double().cpu()


@torch.no_grad()
def tower_responses(model: ImageModel, sets: Sequence[NodeSet], targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """As `tower_predictions`, and how the codes of the features that fire in the image change.

    Args:
        model: the image, with the skip passed (`skip="through"`).
        sets: what is changed, each by itself.
        targets: what is read; may be none.

    Returns:
        `(sets, targets)` and `(sets, sources)` float64, sources in the order of `model.sources.all_active`, layer after
        layer.
    """
    parts = [_respond(model, some, targets) for some in _portions(model, sets)]
    if not parts:
        sources = sum(len(a) for a in model.sources.all_active)
        return torch.zeros(0, len(targets), dtype=torch.float64), torch.zeros(0, sources, dtype=torch.float64)
    read, codes = zip(*parts)
    return torch.cat(read), torch.cat(codes)


def _portions(model: ImageModel, sets: Sequence[NodeSet]) -> list[Sequence[NodeSet]]:
    """As many sets at once as fit well."""
    per_set = model.clt.d_model * max(model.parts.n_positions, max(len(a) for a in model.sources.all_active))
    step = max(1, _NUMBERS // max(per_set, 1))
    return [sets[i : i + step] for i in range(0, len(sets), step)]


def _values(
    model: ImageModel, sets: Sequence[NodeSet], targets: Sequence[Target]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Targets `(sets, targets)` and codes `(sets, sources)` when a share of the changes is made."""
    moves = _Moves(model, sets)

    def values(share: Tensor) -> tuple[Tensor, Tensor]:
        stream, codes = moves.moved(share)
        embeddings = embed_stream(model.parts, stream)
        read = [target_values(model.parts, embeddings, target) for target in targets]
        return torch.stack(read, 1) if read else stream.new_zeros(len(sets), 0), torch.cat(codes, 1)

    return values


def _respond(model: ImageModel, sets: Sequence[NodeSet], targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    values = _values(model, sets, targets)
    # inference mode's tensors take no part in derivatives
    with torch.inference_mode(False):
        start = model.image.new_zeros(())
        read, codes = torch.func.jvp(values, (start,), (torch.ones_like(start),))[1]
    return read.detach().double().cpu(), codes.detach().double().cpu()


class _Moves:
    """Several sets, when a share of their changes is made."""

    def __init__(self, model: ImageModel, sets: Sequence[NodeSet]) -> None:
        self.model, self.rows = model, len(sets)
        like, P = model.image, model.parts.n_positions
        active = model.sources.all_active
        self.pinned = [torch.zeros(self.rows, len(a), dtype=torch.bool, device=like.device) for a in active]
        self.change = [like.new_zeros(self.rows, len(a)) for a in active]
        #: what is written into a layer beside: features that do not fire in the image, errors, biases
        self.beside = [like.new_zeros(self.rows, P, model.clt.d_out) for _ in active]
        lookup = [
            {(int(p), int(f)): i for i, (p, f) in enumerate(zip(a.positions.tolist(), a.features.tolist()))}
            for a in active
        ]
        for row, nodes in enumerate(sets):
            for edit in nodes:
                places = range(P) if edit.position is None else (edit.position,)
                where = slice(places[0], places[-1] + 1)
                if edit.kind != "feature":
                    part = (
                        model.sources.errors[edit.layer][where]
                        if edit.kind == "error"
                        else model.clt.bias(edit.layer, like).detach()
                    )
                    self.beside[edit.layer][row, where] += (edit.value - 1) * part
                    continue
                assert edit.feature is not None
                for position in places:
                    at = lookup[edit.layer].get((position, edit.feature))
                    clean = 0.0 if at is None else float(active[edit.layer].values[at])
                    change = pinned_code(edit, clean) - clean
                    if at is not None:
                        self.pinned[edit.layer][row, at] = True
                        self.change[edit.layer][row, at] = change
                    elif change:
                        self._write_beside(row, position, edit.layer, edit.feature, change)

    def _write_beside(self, row: int, position: int, layer: int, feature: int, change: float) -> None:
        clt = self.model.clt
        one = torch.tensor([feature], device=self.model.image.device)
        for target in range(layer, clt.n_layers):
            if clt.writes(layer, target):
                written = decoder_rows(clt, layer, one, target, self.model.image)[0]
                self.beside[target][row, position] += change * written

    def moved(self, share: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last stream `(sets, positions, d_model)`, and each layer's codes `(sets, active)`."""
        model, clt = self.model, self.model.clt
        stream = model.seen.streams[0].expand(self.rows, -1, -1)
        codes: list[Tensor] = []
        for layer, part in enumerate(model.parts.blocks):
            middle = stream + live_attention(part, stream)
            x = part.norm_2(middle)
            read = live_mlp(part, x) if clt.topology == "sae" else x
            active = model.sources.all_active[layer]
            moved = active.values + share * self.change[layer]
            codes.append(torch.where(self.pinned[layer], moved, self._pre(layer, read)))
            y = clt.bias(layer, x).detach() + model.tower.past_mlp(layer, x) + model.sources.errors[layer]
            y = y + share * self.beside[layer]
            for source in range(layer + 1):
                if clt.writes(source, layer):
                    y = y + self._written(source, layer, codes[source])
            stream = middle + y
        return stream, codes

    def _pre(self, layer: int, read: Tensor) -> Tensor:
        """`(sets, active)` pre-activations of the features that fire in the image."""
        clt, active = self.model.clt, self.model.sources.all_active[layer]
        found = [read.new_zeros(self.rows, 0)]
        for position in range(read.shape[1]):
            features = active.features[active.offsets[position] : active.offsets[position + 1]]
            rows = encoder_rows(clt, layer, features, read)
            found.append(read[:, position] @ rows.T + clt.b_enc[layer].detach()[features].to(read))
        return torch.cat(found, 1)

    def _written(self, source: int, layer: int, codes: Tensor) -> Tensor:
        """`(sets, positions, d_model)`: what the codes of one layer write into another."""
        active = self.model.sources.all_active[source]
        found = []
        for position in range(self.model.parts.n_positions):
            here = slice(active.offsets[position], active.offsets[position + 1])
            rows = decoder_rows(self.model.clt, source, active.features[here], layer, self.model.image)
            found.append(codes[:, here] @ rows)
        return torch.stack(found, 1)
