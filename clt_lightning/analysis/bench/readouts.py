"""What a linear probe of an image's class loses on the reconstruction, and what a few features tell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.probes.fit import Rows, check_ks, fit_classes
from clt_lightning.analysis.probes.images import SPLITS, pooled

SOURCES = ("features", "reconstruction", "codes")
#: Draws of random features that a k-sparse probe is compared with
RANDOM_DRAWS = 3
ByLayer = list[dict[str, Rows]]


class PooledRows:
    """One vector an image with a label, of every layer and source.

    Args:
        n_layers: of the transcoder.
        sources: of `SOURCES`.
        span: tokens that are pooled.
        pool: `cls`, `mean` or `max`.
    """

    def __init__(self, n_layers: int, sources: Sequence[str], span: slice, pool: str) -> None:
        self.sources, self.span, self.pool = tuple(sources), span, pool
        self.parts: list[dict[str, list[Tensor]]] = [{name: [] for name in sources} for _ in range(n_layers)]
        self.labels: list[Tensor] = []

    def add(self, layer: int, seen: Mapping[str, Tensor], known: Tensor) -> None:
        """What `tokens_of_layers` gives of a layer; `known (images,)`: those that have a label."""
        for name in self.sources:
            self.parts[layer][name].append(pooled(seen[name], self.span, self.pool)[known.to(seen[name].device)].cpu())

    def rows(self) -> ByLayer:
        """By layer and source."""
        y = torch.cat(self.labels)
        return [{name: Rows(torch.cat(part).float(), y) for name, part in layer.items()} for layer in self.parts]


@dataclass(frozen=True)
class Sparse:
    """Probes that read k features.

    Attributes:
        k: how many.
        columns: the features, best first; chosen on `train`.
        right: `(test images, 2)`: whether the probe is right, and how often one of as many random features is.
    """

    k: int
    columns: list[int]
    right: np.ndarray


@dataclass(frozen=True)
class Readouts:
    """Of one layer, whether each test image's class is named.

    Attributes:
        whole: by source `(test images,)`, of probes that read all columns.
        sparse: k-sparse ones of the codes.
    """

    whole: dict[str, np.ndarray]
    sparse: list[Sparse]


def read_out(splits: Mapping[str, Mapping[str, Rows]], n_classes: int, ks: Sequence[int], seed: int) -> Readouts:
    """Probes of one layer: learned on `train`, regularised by `val`, measured on `test`.

    Args:
        splits: by split and source.
        n_classes: number of classes.
        ks: of k-sparse probes; those larger than the number of features are left out.
        seed: of random features.
    """
    by_source = {name: [splits[split][name] for split in SPLITS] for name in splits["train"]}
    whole = {name: _right(rows[0], rows[1], rows[2], n_classes)[0] for name, rows in by_source.items()}
    train, val, test = by_source["codes"]
    changing = (train.x.amax(0) > train.x.amin(0)).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    sparse = []
    for k in check_ks(ks, len(changing)):
        best, columns = _right(train, val, test, n_classes, k)
        others = []
        for _ in range(RANDOM_DRAWS):
            drawn = changing[torch.randperm(len(changing), generator=generator)[:k]]
            others.append(_right(train.columns(drawn), val.columns(drawn), test.columns(drawn), n_classes)[0])
        sparse.append(Sparse(k, columns, np.stack([best, np.mean(others, 0)], 1)))
    return Readouts(whole, sparse)


def _right(train: Rows, val: Rows, test: Rows, n_classes: int, k: int | None = None) -> tuple[np.ndarray, list[int]]:
    probe = fit_classes(train, val, n_classes, k)
    right = (probe.classes(test.x) == test.y).double().numpy()
    return right, [] if probe.chosen is None else probe.chosen.tolist()
