"""Virtual weights: how a feature's decoders meet another's encoder, without any image; and how often both are active.

The cheap form of a data set's graph (virtual weight times co-activation), which sees neither attention nor the image's
own scales. `expected.py` has the one that does.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from clt_lightning.analysis.circuits.expected import ExpectedGraph
from clt_lightning.analysis.circuits.parts import TowerParts
from clt_lightning.analysis.circuits.sources import decoder_rows, encoder_rows
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder

#: Pairs of rows gathered at once
_PAIRS = 1 << 14


@torch.no_grad()
def virtual_weights(
    parts: TowerParts, clt: CrossLayerTranscoder, reader: Int[Tensor, " pairs"], source: Int[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """`(pairs,)` float64: `<sum of what the source writes before the reader's layer, what the reader reads>`.

    The norm before the reader's MLP is folded in: its weight, and the mean that it takes off; its scale is the image's
    own and left out. Same position alone.

    Args:
        parts: the tower.
        clt: the transcoder.
        reader: `(pairs,)` `layer * F + feature`.
        source: `(pairs,)` the same.

    Raises:
        UserError: topology `sae`, whose encoders read what comes after the MLP.
    """
    if clt.topology == "sae":
        raise UserError("virtual weights are of encoders that read the MLP's input: topology 'sae' has none")
    F = clt.n_features
    out = torch.zeros(len(reader), dtype=torch.float64)
    places = torch.stack([source // F, reader // F], 1)
    for low, high in places.unique(dim=0).tolist():
        pairs = (places == torch.tensor([low, high])).all(1).nonzero().flatten()
        norm = parts.blocks[high].norm_2
        for some in pairs.split(_PAIRS):
            like = torch.zeros(0, dtype=torch.float32, device=clt.b_dec.device)
            rows = encoder_rows(clt, high, (reader[some] % F).to(like.device), like)
            if norm.weight is not None:
                rows = rows * norm.weight.to(rows)
            if norm.centred:
                rows = rows - rows.mean(1, keepdim=True)
            written = torch.zeros_like(rows)
            for layer in range(low, high):
                if clt.writes(low, layer):
                    written += decoder_rows(clt, low, (source[some] % F).to(like.device), layer, like)
            out[some] = (rows.double() * written.double()).sum(1).cpu()
    return out


def by_coactivation(
    parts: TowerParts, clt: CrossLayerTranscoder, graph: ExpectedGraph
) -> tuple[Bool[Tensor, " edges"], Float[Tensor, " some"], Float[Tensor, " some"]]:
    """The edges between features of a data set's graph in the cheap form.

    Returns:
        `(edges,)` bool which edges of the graph these are, and for them the virtual weights and the share of images in
        which both are active times that weight.
    """
    here = graph.between_features
    weights = virtual_weights(parts, clt, graph.reader[here], graph.source[here])
    return here, weights, weights * graph.count[here].double() / graph.images


def rank_correlation(a: Num[Tensor, " n"], b: Num[Tensor, " n"]) -> float:
    """Spearman's: Pearson's of the ranks, ties at their mean rank; NaN for fewer than two different values."""

    def ranks(values: Tensor) -> np.ndarray:
        _, owner, count = np.unique(values.numpy(), return_inverse=True, return_counts=True)
        ends = count.cumsum()
        return ((2 * ends - count + 1) / 2)[owner]

    x, y = ranks(a.double()), ranks(b.double())
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])
