"""The graph of a data set: every edge's mean over images, of graphs summed over positions, with its error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Num, Shaped
from torch import Tensor

from clt_lightning.analysis.circuits.attribution import MAX_NODES, attribute
from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.target import Target
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.transcoder import CrossLayerTranscoder

#: Edges kept into each reader, the largest by absolute sum
PER_READER = 256
#: Edges that wait before they are merged
_WAITING = 4_000_000


@dataclass(frozen=True)
class ExpectedGraph:
    """Mean edges between features, and from features to targets, over images.

    An edge of an image is the sum over all pairs of positions; an image in which it does not occur counts as 0.

    Attributes:
        reader: `(edges,)` int64: `layer * F + feature`, or `L * F + number` of a target.
        source: `(edges,)` int64: `layer * F + feature`.
        mean: `(edges,)` float64.
        error: `(edges,)` float64 standard error of the mean over images; NaN for a single image.
        count: `(edges,)` int64: images in which both are active and connected.
        images: how many images.
        active: `(layers, F)` int64: images in which a feature is active.
        target_names: names of the targets, one for each distinct name that occurred.
        target_images: `(targets,)` int64: images that each was read of.
        per_reader: the bound on edges into a reader; where it has cut, sums are of the edges that stayed.
    """

    reader: Int[Tensor, " edges"]
    source: Int[Tensor, " edges"]
    mean: Float[Tensor, " edges"]
    error: Float[Tensor, " edges"]
    count: Num[Tensor, " edges"]
    images: int
    active: Int[Tensor, "layers features"]
    target_names: tuple[str, ...]
    target_images: Int[Tensor, " targets"]
    per_reader: int

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def n_features(self) -> int:
        return self.active.shape[1]

    @property
    def between_features(self) -> Bool[Tensor, " edges"]:
        """`(edges,)` bool: edges whose reader is a feature."""
        return self.reader < self.active.numel()

    def number(self, layer: int, feature: int) -> int:
        """The number of a feature as reader and source."""
        return layer * self.n_features + feature

    def target_number(self, name: str) -> int:
        """The number of a target as reader.

        Raises:
            UserError: no target of that name.
        """
        if name not in self.target_names:
            known = ", ".join(self.target_names[:5])
            raise UserError(f"no image was read for {name!r}; there are, for example: {known}")
        return self.active.numel() + self.target_names.index(name)

    def into(self, reader: int, n: int, positive: bool = True) -> list[tuple[int, float]]:
        """The n sources with the largest (positive) mean edges into a reader, largest first: numbers and means."""
        here = (self.reader == reader).nonzero().flatten()
        values = self.mean[here]
        if positive:
            here, values = here[values > 0], values[values > 0]
        order = values.abs().argsort(descending=True, stable=True)[:n]
        return list(zip(self.source[here[order]].tolist(), values[order].tolist()))

    def chain(self, name: str, width: int = 3) -> list[list[tuple[int, int, float]]]:
        """The concepts behind a target: its strongest sources, then theirs, down to the first layer.

        Args:
            name: of a target.
            width: concepts of each layer.

        Returns:
            for each layer from the last to the first, `(layer, feature, weight)`. The target weighs 1; a weight is
            handed down along positive mean edges, in proportion to them.
        """
        reach: dict[int, float] = {self.target_number(name): 1.0}
        out = []
        for layer in range(len(self.active) - 1, -1, -1):
            low, high = layer * self.n_features, (layer + 1) * self.n_features
            candidates: dict[int, float] = {}
            for reader, weight in reach.items():
                edges = (self.reader == reader) & (self.mean > 0)
                total = float(self.mean[edges].sum())
                here = edges & (self.source >= low) & (self.source < high)
                for source, value in zip(self.source[here].tolist(), self.mean[here].tolist()):
                    candidates[source] = candidates.get(source, 0.0) + weight * value / total
            chosen = sorted(candidates.items(), key=lambda entry: -entry[1])[:width]
            reach |= dict(chosen)
            out.append([(layer, source % self.n_features, weight) for source, weight in chosen])
        return out


@dataclass
class EdgeSums:
    """Sums over images, in bounded memory: at most `readers x per_reader` edges of 32 bytes, and what waits.

    Args:
        n_layers: L.
        n_features: F.
        per_reader: edges kept into each reader.
    """

    n_layers: int
    n_features: int
    per_reader: int = PER_READER
    images: int = 0
    _kept: list[Shaped[Tensor, " edges"]] = field(default_factory=list)
    _waiting: list[tuple[Shaped[Tensor, " found"], Shaped[Tensor, " found"]]] = field(default_factory=list)
    _names: dict[str, int] = field(default_factory=dict)
    _read: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.active = torch.zeros(self.n_layers, self.n_features, dtype=torch.int64)

    def add(self, graph: Graph) -> None:
        """Take in the graph of one image.

        Raises:
            UserError: a graph whose positions are not summed, or one that was pruned.
        """
        if not graph.summed or graph.pruned:
            raise UserError("a data set's graph is made of graphs with positions='summed' that were not pruned")
        nodes, edges = graph.nodes, graph.edges
        features = nodes.of("feature")
        number = nodes.layer * self.n_features + nodes.feature
        for place, target in zip(nodes.of("target").nonzero().flatten().tolist(), graph.targets):
            which = self._names.setdefault(target.name, len(self._names))
            self._read[which] = self._read.get(which, 0) + 1
            number[place] = self.n_layers * self.n_features + which
        self.active[nodes.layer[features], nodes.feature[features]] += 1
        real = features[edges.source]
        keys = number[edges.target[real]] * (self.n_layers * self.n_features) + number[edges.source[real]]
        self._waiting.append((keys, edges.weight[real].double()))
        self.images += 1
        if sum(len(k) for k, _ in self._waiting) > _WAITING:
            self._merge()

    def result(self) -> ExpectedGraph:
        """The means of all images so far.

        Raises:
            UserError: there were none.
        """
        if not self.images:
            raise UserError("a data set's graph needs at least one image")
        self._merge()
        keys, total, squares, count = self._kept
        base = self.n_layers * self.n_features
        reader, source = keys // base, keys % base
        read = torch.tensor([self._read[i] for i in range(len(self._names))], dtype=torch.int64)
        # a target's mean is over the images that it was read of
        n = torch.full(reader.shape, float(self.images), dtype=torch.float64)
        of_targets = reader >= base
        n[of_targets] = read[reader[of_targets] - base].double()
        mean = total / n
        spread = (squares / n - mean.square()).clamp(min=0)
        error = (spread / (n - 1)).sqrt()
        error[n < 2] = float("nan")
        names = tuple(self._names)
        return ExpectedGraph(
            reader, source, mean, error, count.long(), self.images, self.active, names, read, self.per_reader
        )

    def _merge(self) -> None:
        keys = [k for k, _ in self._waiting]
        weights = torch.cat([w for _, w in self._waiting]) if keys else torch.zeros(0, dtype=torch.float64)
        columns = [weights, weights.square(), torch.ones_like(weights)]
        if self._kept:
            keys = [self._kept[0], *keys]
            columns = [torch.cat([old, new]) for old, new in zip(self._kept[1:], columns)]
        self._waiting = []
        unique, owner = torch.cat(keys).unique(return_inverse=True)
        sums = [torch.zeros(len(unique), dtype=torch.float64).index_add_(0, owner, column) for column in columns]
        # the largest of each reader: sorted by reader, then size; rank within the reader
        reader = unique // (self.n_layers * self.n_features)
        order = sums[0].abs().argsort(descending=True, stable=True)
        order = order[reader[order].argsort(stable=True)]
        counts = torch.unique_consecutive(reader[order], return_counts=True)[1]
        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        kept = order[torch.arange(len(order)) - first < self.per_reader].sort().values
        self._kept = [unique[kept], *(column[kept] for column in sums)]


def expected_graph(
    clip: Any,
    clt: CrossLayerTranscoder,
    batches: Iterable[dict[str, Any]],
    target: Callable[[Float[Tensor, " embed_dim"]], Target],
    *,
    max_nodes: int = MAX_NODES,
    per_reader: int = PER_READER,
    images: int | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> ExpectedGraph:
    """The mean graph of a data set.

    Args:
        clip: the backbone.
        clt: its transcoder.
        batches: `{"image": (B, 3, H, W)}`.
        target: what is read of an image, from its unit embedding `(embed_dim,)`: its most probable class, say. Targets
            of one name are one reader.
        max_nodes: features that an image's graph has at most.
        per_reader: edges kept into each reader.
        images: how many there are, for the progress; None: nobody knows.
        dtype: of the graphs.
        progress: say how far it is.

    Raises:
        UserError: no images, and what `attribute` raises.
    """
    sums = EdgeSums(clt.n_layers, clt.n_features, per_reader)
    with Progress("graphs", images, "images", show=progress) as bar:
        for batch in batches:
            embeddings = clip.encode_image(batch["image"])
            for image, embedding in zip(batch["image"], embeddings):
                wanted = target(embedding)
                sums.add(attribute(clip, clt, image, wanted, positions="summed", max_nodes=max_nodes, dtype=dtype))
                bar.update()
    return sums.result()
