"""Features beside features: alike in what they write or read, active together, reading and writing each other."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.analysis.retrieval import Retrieval
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.arrays import Arrays
from clt_lightning.core.progress import track
from clt_lightning.transcoder import CrossLayerTranscoder

#: How many of each kind
N = 10
#: Images on which two features must be active together to count as co-firing
TOGETHER = 5
_BLOCK = 1 << 24  # cosines that are held at once


class Neighbours(Arrays):
    """The nearest features of every feature; arrays as documented in docs/results-schema.md.

    Attributes:
        arrays: `<kind>_feature (L, F, n)` int32 (-1 padding) and `<kind>_score (L, F, n)` float32, for the kinds
            `decoder`, `encoder`, `together` (of the same layer), `reader` and `writer` (with `<kind>_layer`).
    """

    FILE = "neighbours.npz"


@torch.no_grad()
def find_neighbours(
    clip: FrozenCLIP, clt: CrossLayerTranscoder, alive: np.ndarray, retrieval: Retrieval | None = None, n: int = N
) -> Neighbours:
    """The neighbours of all features that ever fired.

    Args:
        clip: the backbone, whose norms' weights stand between what is written and what is read.
        clt: the transcoder.
        alive: `(L, F)` bool: features that count, as neighbours too.
        retrieval: codes of images, for co-firing; None leaves it out.
        n: how many of each kind.
    """
    n = min(n, max(clt.n_features - 1, 1))
    living = torch.from_numpy(alive)
    tables: dict[str, tuple[Tensor, Tensor]] = {}
    for kind in ("decoder", "encoder", *(() if retrieval is None else ("together",))):
        rows = []
        for layer in range(clt.n_layers):
            if kind == "together":
                assert retrieval is not None
                rows.append(_together(retrieval, layer, n))
                continue
            vectors = concatenated_decoders(clt, layer) if kind == "decoder" else clt.W_enc[layer]
            rows.append(_nearest(F.normalize(vectors.float(), dim=1), living[layer].to(vectors.device), n))
        tables[kind] = torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])
    arrays: dict[str, np.ndarray] = {}
    for kind, (score, index) in tables.items():
        arrays[f"{kind}_feature"], arrays[f"{kind}_score"] = index.int().cpu().numpy(), score.float().cpu().numpy()
    if clt.sites.read != "mlp_in" or not clt.sites.is_mlp:
        return Neighbours(arrays)  # its encoders read what its decoders rebuild, not the stream
    return Neighbours(arrays | _virtual(clip, clt, living, n))


def concatenated_decoders(clt: CrossLayerTranscoder, layer: int) -> Tensor:
    """`(F, targets * d_model)`: each feature's rows into all layers that it writes to, in the backbone's units."""
    scales = clt.y_scale[layer : layer + clt.n_targets(layer)]
    result: Tensor = (clt.W_dec[layer] * scales[None, :, None]).flatten(1)
    return result


def read_directions(clip: FrozenCLIP, clt: CrossLayerTranscoder, layer: int) -> Tensor:
    """`(F, d_model)`: how each encoder of a layer reads the stream: through the norm's weight, without its mean.

    The LayerNorm's scale, which differs from token to token, is left out: weights compare within a layer.
    """
    rows = clt.W_enc[layer] * clt.x_scale[layer]
    norm = clip.family.norms(clip.blocks[layer])[1]
    weight = getattr(norm, "weight", None)
    rows = rows if weight is None else rows * weight.to(rows)
    result: Tensor = rows - rows.mean(1, keepdim=True) if isinstance(norm, torch.nn.LayerNorm) else rows
    return result


def _nearest(unit: Tensor, alive: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """`(F, n)` cosines and features, largest first; -1 padding, and none for features that never fired."""
    n_features = len(unit)
    score, index = unit.new_zeros(n_features, n), torch.full((n_features, n), -1, device=unit.device)
    for start in range(0, n_features, max(1, _BLOCK // n_features)):
        rows = torch.arange(start, min(start + max(1, _BLOCK // n_features), n_features), device=unit.device)
        cosines = (unit[rows] @ unit.T).masked_fill(~alive, -torch.inf)
        cosines[torch.arange(len(rows)), rows] = -torch.inf
        best, which = cosines.topk(n, 1)
        none = ~torch.isfinite(best) | ~alive[rows, None]
        score[rows], index[rows] = best.masked_fill(none, 0.0), which.masked_fill(none, -1)
    return score, index


def _together(retrieval: Retrieval, layer: int, n: int) -> tuple[Tensor, Tensor]:
    """Features with the largest pointwise mutual information over images: `log p(f, g) / (p(f) p(g))`, in nats.

    From the stored codes, which keep each image's largest entries: weak features are missing there.
    """
    images, kept = retrieval.values[layer].shape
    active = torch.from_numpy(retrieval.values[layer] != 0)
    rows = torch.arange(images)[:, None].expand(-1, kept)[active]
    columns = torch.from_numpy(retrieval.indices[layer].astype(np.int64))[active]
    size = (images, retrieval.n_features)
    X = torch.sparse_coo_tensor(
        torch.stack([rows, columns]), torch.ones(len(rows)), size, check_invariants=False
    ).coalesce()
    counts = torch.sparse.sum(X, 0).to_dense()
    pairs = torch.sparse.mm(X.T, X).coalesce()
    (a, b), both = pairs.indices(), pairs.values()
    chosen = (a != b) & (both >= TOGETHER)
    a, b, both = a[chosen], b[chosen], both[chosen]
    pmi = (both * images / (counts[a] * counts[b])).log()
    # by feature, then by score: the place within a feature's run is its rank
    order = torch.argsort(pmi, descending=True, stable=True)
    order = order[torch.argsort(a[order], stable=True)]
    a, b, pmi = a[order], b[order], pmi[order]
    starts = torch.searchsorted(a, torch.arange(retrieval.n_features))
    rank = torch.arange(len(a)) - starts[a]
    score = torch.zeros(retrieval.n_features, n)
    index = torch.full((retrieval.n_features, n), -1)
    first = rank < n
    score[a[first], rank[first]], index[a[first], rank[first]] = pmi[first], b[first]
    return score, index


def _virtual(clip: FrozenCLIP, clt: CrossLayerTranscoder, alive: Tensor, n: int) -> dict[str, np.ndarray]:
    """Readers and writers of every feature: the largest virtual weights, by magnitude, through the residual stream.

    The weight from feature f of layer i to feature g of layer j > i is `sum over k in i..j-1 of
    <W_dec[i -> k, f], read direction of g>`: what one unit of f moves the pre-activation of g, attention and other MLPs
    left out and the LayerNorm's scale set to 1.
    """
    L, n_features = clt.n_layers, clt.n_features
    best = {kind: _Best(L, n_features, n) for kind in ("reader", "writer")}
    reads = [read_directions(clip, clt, layer) for layer in range(L)]
    pairs = [(i, j) for j in range(1, L) for i in range(j)]
    everyone = torch.arange(n_features, device=clt.b_dec.device)
    written: list[Tensor] = []  # by source: what its features have written into the stream that layer j reads
    for i, j in track(pairs, "virtual weights", unit="pairs of layers"):
        if i == 0:
            for source in range(j):
                new = clt.rows(source, everyone, j - 1) if clt.writes(source, j - 1) else 0.0
                if source == j - 1:
                    written.append(new + torch.zeros_like(reads[0]))
                else:
                    written[source] = written[source] + new
        step = max(1, _BLOCK // n_features)
        for start in range(0, n_features, step):
            rows = everyone[start : start + step]
            weights = (written[i][rows] @ reads[j].T).float().cpu()
            weights[~alive[i][rows.cpu()]] = 0.0
            weights[:, ~alive[j]] = 0.0
            best["reader"].take(i, rows.cpu(), weights, j, 0)
            best["writer"].take(j, torch.arange(n_features), weights.T, i, int(rows[0]))
    out: dict[str, np.ndarray] = {}
    for kind, table in best.items():
        none = table.score == 0
        out[f"{kind}_layer"] = table.layer.masked_fill(none, -1).int().numpy()
        out[f"{kind}_feature"] = table.feature.masked_fill(none, -1).int().numpy()
        out[f"{kind}_score"] = table.score.numpy()
    return out


class _Best:
    """For every feature the partners with the largest weights so far."""

    def __init__(self, layers: int, features: int, n: int) -> None:
        self.n = n
        self.score = torch.zeros(layers, features, n)
        self.layer = torch.full((layers, features, n), -1)
        self.feature = torch.full((layers, features, n), -1)

    def take(self, layer: int, rows: Tensor, weights: Tensor, partner_layer: int, first: int) -> None:
        """Let weights `(rows, partners)` with the features `first ..` of another layer compete."""
        top = weights.abs().topk(min(self.n, weights.shape[1]), 1).indices
        score = torch.cat([self.score[layer, rows], weights.gather(1, top)], 1)
        where = torch.cat([self.layer[layer, rows], torch.full_like(top, partner_layer)], 1)
        which = torch.cat([self.feature[layer, rows], top + first], 1)
        keep = score.abs().topk(self.n, 1).indices
        self.score[layer, rows] = score.gather(1, keep)
        self.layer[layer, rows] = where.gather(1, keep)
        self.feature[layer, rows] = which.gather(1, keep)
