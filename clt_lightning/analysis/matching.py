"""Which features of two transcoders are the same: each other's nearest, by what they write and by what they read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.feature_rows import KINDS, Pair, pair_of
from clt_lightning.analysis.one_to_one import Assignment, chosen, one_to_one
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import track
from clt_lightning.transcoder import CrossLayerTranscoder

#: Cosine, of decoders and of encoders, from which each other's nearest features count as one
KEPT = 0.7
#: ... and from which a feature counts as near to one that has a nearer partner
NEAR = 0.5
#: What a feature has in the other transcoder: it never fired; a partner of its own; a near one that is another's; none
STATES = ("dead", "kept", "split", "new")
_NULL_ROWS = 512  # features whose nearest by chance is looked for


@dataclass(frozen=True)
class Side:
    """The features of one of the two transcoders in a layer.

    Attributes:
        state: `(F,)` int8, an index of `STATES`.
        partner: `(F,)` int64, the nearest feature of the other one by `both`; -1 for dead ones.
        decoder: `(F,)` float32, cosine of what the two write, over all layers.
        encoder: `(F,)` float32, cosine of what they read.
    """

    state: np.ndarray
    partner: np.ndarray
    decoder: np.ndarray
    encoder: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """`(F,)` the smaller of the two."""
        result: np.ndarray = np.minimum(self.decoder, self.encoder)
        return result

    def count(self, state: str) -> int:
        """How many features are in a state."""
        return int((self.state == STATES.index(state)).sum())


@dataclass(frozen=True)
class LayerMatching:
    """One layer.

    Attributes:
        layer: which.
        a: features of the first transcoder: `kept`; `split`: its nearest is nearer to another; `new`: it is gone.
        b: of the second: `kept`; `split`: a second one near to a feature of the first; `new`: it was not there.
        mmcs: mean over the first's features of the largest cosine with any of the second's, by `KINDS`.
        mmcs_b: the same over the second's features.
        mcc: mean cosine of the pairs of a one-to-one matching, by `KINDS` (PW-MCC); each kind has its own matching.
        assignment: how that was made: `hungarian`, the best there is, or `greedy`, the largest cosines first.
        null: `mmcs` with an untrained partner (`untrained`: random directions), and with random mixtures of the
            second's own rows (`mixed`: directions from the same subspace); `mcc`: the same two for the one-to-one
            matching; `limit`: the largest `both` that 99 % of the features find by chance in the harder of the two.
            Empty where a side has no living feature.
        near: the cosine that counted as near: the one asked for, or `limit` where that is larger.
        kept: the same for `kept`.
    """

    layer: int
    a: Side = field(repr=False)
    b: Side = field(repr=False)
    mmcs: dict[str, float]
    mmcs_b: dict[str, float]
    mcc: dict[str, float]
    assignment: Literal["hungarian", "greedy"]
    null: dict[str, Any]
    near: float
    kept: float


@torch.no_grad()
def match_features(
    a: CrossLayerTranscoder,
    b: CrossLayerTranscoder,
    alive_a: np.ndarray | None = None,
    alive_b: np.ndarray | None = None,
    kept: float = KEPT,
    near: float = NEAR,
    seed: int = 0,
    progress: bool = False,
    assignment: Assignment = "auto",
) -> list[LayerMatching]:
    """Matches the features of two transcoders of one backbone, layer by layer.

    Decoders are compared over all layers that both write to, in the backbone's units. Two features are one where each
    is the other's nearest by the smaller of the two cosines, and that is at least `kept`. Where codes may be negative
    in both (AbsTopK), a pair that points the other way on both sides is the same feature.

    Args:
        a: the first.
        b: the second, for the same layers of the same width; F may differ.
        alive_a: `(L, F)` bool, features of the first that count; None: all.
        alive_b: the same of the second.
        kept: least cosine of a kept pair.
        near: least cosine of a near pair.
        seed: of the nulls.
        progress: say how far it is.
        assignment: how the one-to-one matching is made: `hungarian` is the best there is, `greedy` takes the largest
            cosines first and is never better; `auto` takes the first up to `one_to_one.LARGEST` pairs of features.

    Raises:
        UserError: other sites, layers or widths, masks of another shape, or limits that are none.
    """
    check_comparable(a, b)
    if not -1 <= near <= kept <= 1:
        raise UserError(f"near and kept are cosines, near <= kept; got {near} and {kept}")
    first, second = (_living(clt, mask) for clt, mask in ((a, alive_a), (b, alive_b)))
    found = []
    for layer in track(range(a.n_layers), "matching", unit="layers", show=progress):
        found.append(_match_layer(a, b, layer, first[layer], second[layer], kept, near, seed + layer, assignment))
    return found


def _living(clt: CrossLayerTranscoder, mask: np.ndarray | None) -> Tensor:
    shape = clt.n_layers, clt.n_features
    if mask is None:
        return torch.ones(shape, dtype=torch.bool)
    if np.shape(mask) != shape:
        raise UserError(f"the mask of living features must be {shape}, layers x features, got {np.shape(mask)}")
    return torch.from_numpy(np.asarray(mask, dtype=bool))


def check_comparable(a: CrossLayerTranscoder, b: CrossLayerTranscoder) -> None:
    """Whether features of two transcoders can be compared at all.

    Raises:
        UserError: they are of other sites, blocks or widths.
    """
    if (a.n_layers, a.d_model, a.d_out) != (b.n_layers, b.d_model, b.d_out):
        raise UserError(
            f"one transcoder is for {a.n_layers} layers of {_width(a)}, the other for {b.n_layers} of {_width(b)}: "
            "their features read and write different things"
        )
    if (a.topology == "sae") != (b.topology == "sae"):
        raise UserError(
            f"topologies {a.topology} and {b.topology}: one reads {a.sites.read}, the other {b.sites.read}, so that "
            "their features have nothing in common to be compared by"
        )
    if (a.sites.read, a.sites.write) != (b.sites.read, b.sites.write):
        raise UserError(
            f"one transcoder reads {a.sites.read} and rebuilds {a.sites.write}, the other {b.sites.read} and "
            f"{b.sites.write}: their features read and write different things"
        )
    blocks = [None if clt.sites.layers == list(range(clt.n_layers)) else clt.sites.layers for clt in (a, b)]
    if blocks[0] != blocks[1]:
        told = ["all blocks" if there is None else f"blocks {there}" for there in blocks]
        raise UserError(
            f"one transcoder is for {told[0]}, the other for {told[1]}: their features read and write different things"
        )


def _width(clt: CrossLayerTranscoder) -> str:
    return f"width {clt.d_model}" if clt.d_model == clt.d_out else f"widths {clt.d_model} and {clt.d_out}"


def _match_layer(
    a: CrossLayerTranscoder,
    b: CrossLayerTranscoder,
    layer: int,
    alive_a: Tensor,
    alive_b: Tensor,
    kept: float,
    near: float,
    seed: int,
    assignment: Assignment,
) -> LayerMatching:
    living = alive_a.nonzero()[:, 0], alive_b.nonzero()[:, 0]
    pair = pair_of(a, b, layer, *living)
    n, m = len(living[0]), len(living[1])
    method = chosen(assignment, n, m)
    if not n or not m:
        nothing = dict.fromkeys(KINDS, float("nan"))
        empty = [_empty(alive) for alive in (alive_a, alive_b)]
        return LayerMatching(layer, empty[0], empty[1], nothing, nothing, nothing, method, {}, near, kept)
    best = {kind: torch.zeros(n) for kind in KINDS}
    of_a, of_b = torch.zeros(n, dtype=torch.int64), torch.zeros(m, dtype=torch.int64)
    cosines_a, cosines_b = torch.zeros(2, n), torch.zeros(2, m)
    best_b = {kind: torch.full((m,), -torch.inf) for kind in KINDS}
    for rows, scores in pair.blocks(torch.arange(n)):
        for kind in KINDS:
            best[kind][rows] = scores[kind].max(1).values.float().cpu()
            highest = scores[kind].max(0)
            top, where = highest.values.float().cpu(), highest.indices
            if kind == "both":
                theirs = torch.arange(m, device=where.device)
                values = torch.stack([scores[k][where, theirs] for k in ("decoder", "encoder")]).float().cpu()
                larger = top > best_b[kind]
                of_b = torch.where(larger, rows[where.cpu()], of_b)
                cosines_b = torch.where(larger, values, cosines_b)
            best_b[kind] = torch.maximum(best_b[kind], top)
        which = scores["both"].argmax(1)
        of_a[rows] = which.cpu()
        mine = torch.arange(len(rows), device=which.device)
        cosines_a[:, rows] = torch.stack([scores[k][mine, which] for k in ("decoder", "encoder")]).float().cpu()
    null = _null(pair, seed, method)
    near, kept = max(near, null["limit"]), max(kept, null["limit"])
    side_a = _side(alive_a, living[0], living[1], of_a, of_b, best["both"], cosines_a, kept, near)
    side_b = _side(alive_b, living[1], living[0], of_b, of_a, best_b["both"], cosines_b, kept, near)
    mmcs, mmcs_b = ({kind: float(v.double().mean()) for kind, v in found.items()} for found in (best, best_b))
    mcc = one_to_one(pair, method)
    return LayerMatching(layer, side_a, side_b, mmcs, mmcs_b, mcc, method, null, near, kept)


def _empty(alive: Tensor) -> Side:
    state = np.where(alive.numpy(), STATES.index("new"), STATES.index("dead")).astype(np.int8)
    zeros = np.zeros(len(state), np.float32)
    return Side(state, np.full(len(state), -1), zeros, zeros)


def _side(
    alive: Tensor,
    mine: Tensor,
    theirs: Tensor,
    partner: Tensor,
    back: Tensor,
    score: Tensor,
    cosines: Tensor,
    kept: float,
    near: float,
) -> Side:
    """One side's features, from places among the living to numbers of features."""
    mutual = back[partner] == torch.arange(len(mine))
    state = torch.full((len(alive),), STATES.index("dead"), dtype=torch.int8)
    one = mutual & (score >= kept)
    close = ~one & (score >= near)
    values = torch.full((len(mine),), STATES.index("new"), dtype=torch.int8)
    values[one], values[close] = STATES.index("kept"), STATES.index("split")
    state[mine] = values
    which = torch.full((len(alive),), -1, dtype=torch.int64)
    which[mine] = theirs[partner]
    spread = torch.zeros(2, len(alive))
    spread[:, mine] = cosines
    return Side(state.numpy(), which.numpy(), spread[0].numpy(), spread[1].numpy())


def _null(pair: Pair, seed: int, assignment: Literal["hungarian", "greedy"]) -> dict[str, Any]:
    """What features of the first find in a partner of no training."""
    generator = torch.Generator().manual_seed(seed)
    n, m = len(pair.decoders[0]), len(pair.decoders[1])
    rows = torch.randperm(n, generator=generator)[:_NULL_ROWS]
    out: dict[str, Any] = {"mcc": {}}
    limit = 0.0
    for name, mixed in (("untrained", False), ("mixed", True)):
        decoders, encoders = (side[1].random(m, generator, mixed) for side in (pair.decoders, pair.encoders))
        chance = Pair((pair.decoders[0], decoders), (pair.encoders[0], encoders), pair.signed)
        best = {
            kind: torch.cat([scores[kind].max(1).values.cpu() for _, scores in chance.blocks(rows)]) for kind in KINDS
        }
        out[name] = {kind: float(values.double().mean()) for kind, values in best.items()}
        out["mcc"][name] = one_to_one(chance, assignment)
        limit = max(limit, float(best["both"].double().quantile(0.99)))
    return out | {"limit": limit}
