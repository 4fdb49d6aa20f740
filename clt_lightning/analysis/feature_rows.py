"""What features write and read, as rows whose cosines are taken block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.transcoder import CrossLayerTranscoder

#: Ways to compare; a pair's `both` is the smaller of the two cosines
KINDS = ("decoder", "encoder", "both")
_BLOCK = 1 << 24  # cosines that are held at once


class Rows:
    """Vectors of some features in parts `(n, d)`; cosines between two of these, block by block."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = list(parts)
        self.inverse = sum(p.float().square().sum(1) for p in self.parts).clamp(min=1e-30).rsqrt()  # type: ignore[union-attr]

    def __len__(self) -> int:
        return len(self.inverse)

    def cosines(self, rows: Tensor, other: Rows) -> Tensor:
        """`(rows, other)`."""
        total = self.parts[0].new_zeros(len(rows), len(other))
        for mine, theirs in zip(self.parts, other.parts):
            total.addmm_(mine[rows], theirs.T)
        return total.mul_(self.inverse[rows, None]).mul_(other.inverse)

    def take(self, rows: Tensor) -> Rows:
        """Some of them."""
        return Rows([part[rows] for part in self.parts])

    def random(self, n: int, generator: torch.Generator, mixed: bool) -> Rows:
        """Random directions, or random mixtures of these rows."""
        if not mixed or not len(self):
            return Rows([torch.randn(n, p.shape[1], generator=generator).to(p) for p in self.parts])
        weights = torch.randn(n, len(self), generator=generator).to(self.inverse) * self.inverse
        return Rows([weights @ part for part in self.parts])


@dataclass
class Pair:
    """What two sets of features write and read.

    Attributes:
        decoders: of the first and of the second.
        encoders: the same.
        signed: whether what points the other way on both sides is the same feature.
    """

    decoders: tuple[Rows, Rows]
    encoders: tuple[Rows, Rows]
    signed: bool

    def take(self, first: Tensor, second: Tensor) -> Pair:
        """Some of either side's features."""
        (a, b), (c, d) = self.decoders, self.encoders
        return Pair((a.take(first), b.take(second)), (c.take(first), d.take(second)), self.signed)

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


def pair_of(a: CrossLayerTranscoder, b: CrossLayerTranscoder, layer: int, living_a: Tensor, living_b: Tensor) -> Pair:
    """Some features of a layer of each of two transcoders.

    Decoders are taken over the layers to which both write, in the backbone's units.

    Args:
        a: the first.
        b: the second.
        layer: which layer.
        living_a: `(n,)` int64, features of the first.
        living_b: `(m,)` of the second.
    """
    targets = [target for target in range(layer, a.n_layers) if a.writes(layer, target) and b.writes(layer, target)]
    decoders, encoders = [], []
    for clt, living in ((a, living_a), (b, living_b)):
        rows = living.to(clt.b_dec.device)
        decoders.append(Rows([clt.rows(layer, rows, target).float() for target in targets]))
        encoders.append(Rows([clt.W_enc[layer][rows].float()]))
    signed = a.activation.signed and b.activation.signed
    return Pair((decoders[0], decoders[1]), (encoders[0], encoders[1]), signed)
