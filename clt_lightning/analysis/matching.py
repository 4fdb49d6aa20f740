"""Which features of two transcoders are the same: each other's nearest, by what they write and by what they read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import track
from clt_lightning.transcoder import CrossLayerTranscoder

#: Cosine, of decoders and of encoders, from which each other's nearest features count as one
KEPT = 0.7
#: ... and from which a feature counts as near to one that has a nearer partner
NEAR = 0.5
#: What a feature has in the other transcoder: it never fired; a partner of its own; a near one that is another's; none
STATES = ("dead", "kept", "split", "new")
#: Ways to compare; a pair's `both` is the smaller of the two cosines
KINDS = ("decoder", "encoder", "both")
_BLOCK = 1 << 24  # cosines that are held at once
_NULL_ROWS = 512  # features whose nearest by chance is looked for
_CANDIDATES = 16


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
        mcc: mean cosine of pairs in a one-to-one matching (largest cosines first), by `KINDS`: PW-MCC with the greedy
            assignment in the place of the Hungarian one, so never larger.
        null: `mmcs` with an untrained partner (`untrained`: random directions), and with random mixtures of the
            second's own rows (`mixed`: directions from the same subspace); `limit`: the largest `both` that 99 % of
            the features find by chance in the harder of the two.
        near: the cosine that counted as near: the one asked for, or `limit` where that is larger.
        kept: the same for `kept`.
    """

    layer: int
    a: Side = field(repr=False)
    b: Side = field(repr=False)
    mmcs: dict[str, float]
    mcc: dict[str, float]
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

    Raises:
        UserError: other layers, another width, or sites that have nothing in common.
    """
    check_comparable(a, b)
    if not -1 <= near <= kept <= 1:
        raise UserError(f"near and kept are cosines, near <= kept; got {near} and {kept}")
    found = []
    for layer in track(range(a.n_layers), "matching", unit="layers", show=progress):
        living = [
            torch.ones(clt.n_features, dtype=torch.bool) if mask is None else torch.from_numpy(np.asarray(mask[layer]))
            for clt, mask in ((a, alive_a), (b, alive_b))
        ]
        found.append(_match_layer(a, b, layer, living[0], living[1], kept, near, seed + layer))
    return found


def check_comparable(a: CrossLayerTranscoder, b: CrossLayerTranscoder) -> None:
    """Whether features of two transcoders can be compared at all.

    Raises:
        UserError: they read other layers or another width, or one reads MLP inputs and the other outputs.
    """
    if (a.n_layers, a.d_model) != (b.n_layers, b.d_model):
        raise UserError(
            f"one transcoder is for {a.n_layers} layers of width {a.d_model}, the other for {b.n_layers} of width "
            f"{b.d_model}: their features read and write different things"
        )
    if (a.topology == "sae") != (b.topology == "sae"):
        raise UserError(
            f"topologies {a.topology} and {b.topology}: one reads MLP outputs, the other MLP inputs, so that their "
            "features have nothing in common to be compared by"
        )


class _Rows:
    """Vectors of some features in parts `(n, d)`; cosines between two of these, block by block."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = list(parts)
        self.inverse = sum(p.float().square().sum(1) for p in self.parts).clamp(min=1e-30).rsqrt()  # type: ignore[union-attr]

    def __len__(self) -> int:
        return len(self.inverse)

    def cosines(self, rows: Tensor, other: _Rows) -> Tensor:
        """`(rows, other)`."""
        total = self.parts[0].new_zeros(len(rows), len(other))
        for mine, theirs in zip(self.parts, other.parts):
            total.addmm_(mine[rows], theirs.T)
        return total.mul_(self.inverse[rows, None]).mul_(other.inverse)

    def take(self, rows: Tensor) -> _Rows:
        return _Rows([part[rows] for part in self.parts])

    def random(self, n: int, generator: torch.Generator, mixed: bool) -> _Rows:
        """Random directions, or random mixtures of these rows."""
        if not mixed or not len(self):
            return _Rows([torch.randn(n, p.shape[1], generator=generator).to(p) for p in self.parts])
        weights = torch.randn(n, len(self), generator=generator).to(self.inverse) * self.inverse
        return _Rows([weights @ part for part in self.parts])


@dataclass
class _Pair:
    """What two sets of features write and read."""

    decoders: tuple[_Rows, _Rows]
    encoders: tuple[_Rows, _Rows]
    signed: bool

    def blocks(self, rows: Tensor) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Some of the first's features at a time, with their `(rows, second)` cosines by kind."""
        step = max(1, _BLOCK // max(len(self.decoders[1]), 1))
        for part in rows.split(step):
            writes = self.decoders[0].cosines(part, self.decoders[1])
            reads = self.encoders[0].cosines(part, self.encoders[1])
            both = torch.minimum(writes, reads)
            if self.signed:
                both = torch.maximum(both, torch.minimum(-writes, -reads))
                writes, reads = writes.abs(), reads.abs()
            yield part, {"decoder": writes, "encoder": reads, "both": both}


def _match_layer(
    a: CrossLayerTranscoder,
    b: CrossLayerTranscoder,
    layer: int,
    alive_a: Tensor,
    alive_b: Tensor,
    kept: float,
    near: float,
    seed: int,
) -> LayerMatching:
    living = alive_a.nonzero()[:, 0], alive_b.nonzero()[:, 0]
    sides = [_of_layer(clt, layer, mine, _common(a, b, layer)) for clt, mine in zip((a, b), living)]
    pair = _Pair((sides[0][0], sides[1][0]), (sides[0][1], sides[1][1]), _signed(a) and _signed(b))
    n, m = len(living[0]), len(living[1])
    if not n or not m:
        nothing = dict.fromkeys(KINDS, float("nan"))
        empty = [_empty(alive) for alive in (alive_a, alive_b)]
        return LayerMatching(layer, empty[0], empty[1], nothing, nothing, {}, near, kept)
    best = {kind: torch.zeros(n) for kind in KINDS}
    of_a, of_b = torch.zeros(n, dtype=torch.int64), torch.zeros(m, dtype=torch.int64)
    cosines_a, cosines_b = torch.zeros(2, n), torch.zeros(2, m)
    best_b = torch.full((m,), -torch.inf)
    candidates = {kind: _Candidates() for kind in KINDS}
    for rows, scores in pair.blocks(torch.arange(n)):
        for kind in KINDS:
            best[kind][rows] = scores[kind].max(1).values.float().cpu()
            candidates[kind].take(rows, scores[kind])
        which = scores["both"].argmax(1)
        of_a[rows] = which.cpu()
        mine = torch.arange(len(rows), device=which.device)
        cosines_a[:, rows] = torch.stack([scores[k][mine, which] for k in ("decoder", "encoder")]).float().cpu()
        top, where = scores["both"].max(0)
        theirs = torch.arange(m, device=which.device)
        values = torch.stack([scores[k][where, theirs] for k in ("decoder", "encoder")]).float().cpu()
        larger = top.float().cpu() > best_b
        best_b = torch.where(larger, top.float().cpu(), best_b)
        of_b = torch.where(larger, rows[where.cpu()], of_b)
        cosines_b = torch.where(larger, values, cosines_b)
    null = _null(pair, seed)
    near, kept = max(near, null["limit"]), max(kept, null["limit"])
    side_a = _side(alive_a, living[0], living[1], of_a, of_b, best["both"], cosines_a, kept, near)
    side_b = _side(alive_b, living[1], living[0], of_b, of_a, best_b, cosines_b, kept, near)
    mmcs = {kind: float(values.double().mean()) for kind, values in best.items()}
    mcc = {kind: _one_to_one(pair, kind, candidates[kind]) for kind in KINDS}
    return LayerMatching(layer, side_a, side_b, mmcs, mcc, null, near, kept)


def _common(a: CrossLayerTranscoder, b: CrossLayerTranscoder, layer: int) -> list[int]:
    return [target for target in range(layer, a.n_layers) if a.writes(layer, target) and b.writes(layer, target)]


def _of_layer(clt: CrossLayerTranscoder, layer: int, living: Tensor, targets: Sequence[int]) -> tuple[_Rows, _Rows]:
    rows = living.to(clt.b_dec.device)
    return _Rows([clt.rows(layer, rows, target).float() for target in targets]), _Rows([clt.W_enc[layer][rows].float()])


def _signed(clt: CrossLayerTranscoder) -> bool:
    return clt.activation.signed


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


def _null(pair: _Pair, seed: int) -> dict[str, Any]:
    """The largest cosines that features of the first find in a partner of no training."""
    generator = torch.Generator().manual_seed(seed)
    n, m = len(pair.decoders[0]), len(pair.decoders[1])
    rows = torch.randperm(n, generator=generator)[:_NULL_ROWS]
    out: dict[str, Any] = {}
    limit = 0.0
    for name, mixed in (("untrained", False), ("mixed", True)):
        decoders, encoders = (side[1].random(m, generator, mixed) for side in (pair.decoders, pair.encoders))
        chance = _Pair((pair.decoders[0], decoders), (pair.encoders[0], encoders), pair.signed)
        best = {
            kind: torch.cat([scores[kind].max(1).values.cpu() for _, scores in chance.blocks(rows)]) for kind in KINDS
        }
        out[name] = {kind: float(values.double().mean()) for kind, values in best.items()}
        limit = max(limit, float(best["both"].double().quantile(0.99)))
    return out | {"limit": limit}


class _Candidates:
    """The pairs with the largest cosines of every row, from which a one-to-one matching is made."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self, rows: Tensor, scores: Tensor, columns: Tensor | None = None) -> None:
        """Some rows' cosines `(rows, n)` with the features `columns`; None: with all, in order."""
        top = scores.topk(min(_CANDIDATES, scores.shape[1]), 1)
        which = top.indices.flatten().cpu()
        which = which if columns is None else columns[which]
        self._parts.append((top.values.flatten().cpu(), rows.repeat_interleave(top.values.shape[1]), which))

    def pick(self, used_a: np.ndarray, used_b: np.ndarray) -> float:
        """Takes pairs, largest first, whose features are both free; marks them, and gives the sum of their cosines."""
        score, row, column = (torch.cat(part).numpy() for part in zip(*self._parts))
        total = 0.0
        for i in np.argsort(-score, kind="stable").tolist():
            if not used_a[row[i]] and not used_b[column[i]]:
                used_a[row[i]] = used_b[column[i]] = True
                total += float(score[i])
        return total


def _one_to_one(pair: _Pair, kind: str, candidates: _Candidates) -> float:
    """Mean cosine of a one-to-one matching by a kind; the larger side's features that are left over do not count."""
    used = [np.zeros(len(rows), bool) for rows in pair.decoders]
    total = candidates.pick(*used)
    while not (used[0].all() or used[1].all()):
        rows, columns = (torch.from_numpy(~part).nonzero()[:, 0] for part in used)
        left = _Pair(
            (pair.decoders[0], pair.decoders[1].take(columns)),
            (pair.encoders[0], pair.encoders[1].take(columns)),
            pair.signed,
        )
        candidates = _Candidates()
        for part, scores in left.blocks(rows):
            candidates.take(part, scores[kind], columns)
        total += candidates.pick(*used)
    return total / min(map(len, used))
