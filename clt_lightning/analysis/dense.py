"""Dense read-out: what single patches tell, of a class or a number at their place, and what is left of it in codes.

A linear probe of each patch's tensor is what a segmentation, depth or policy head begins with; `swapped` is such a
head, learned on the backbone's features, that is given the reconstruction in their place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clt_lightning.analysis.intervals import Interval, mean_intervals
from clt_lightning.analysis.probes.fit import Probe, Rows, check_ks, fit_classes, fit_numbers, mean_recall, spearman
from clt_lightning.analysis.probes.images import SPLITS, tokens_of_layer
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import track
from clt_lightning.transcoder import CrossLayerTranscoder

Batch = Mapping[str, Any]
TargetFn = Callable[[Batch], Tensor]
"""A batch to `(images, rows, columns)` over the backbone's grid: int64 classes (-1: not counted) or float numbers."""

#: What the demo's renders know of every patch (`demo_target`)
DEMO_TARGETS = ("shape", "depth", "position")
#: What is read, and what is given in its place when it is measured
READ_OUTS = {
    "features": ("features", "features"),
    "reconstruction": ("reconstruction", "reconstruction"),
    "swapped": ("features", "reconstruction"),
    "codes": ("codes", "codes"),
}
_DRAWS = 1000
_OF_CLASS = 5


@dataclass(frozen=True)
class ReadOut:
    """One read-out, measured on the test split.

    Attributes:
        name: of `READ_OUTS`.
        k: columns that it reads; None: all.
        width: columns that there are.
        penalty: the regularisation that `val` chose.
        accuracy: of patches, with the 95 % interval over images; None for a number.
        mean_recall: of patches, mean over the classes; None for a number.
        r2: share of the number's variance that is explained; None for classes.
        rank_correlation: Spearman's, of what is read with the number; None for classes.
    """

    name: str
    k: int | None
    width: int
    penalty: float
    accuracy: Interval | None = None
    mean_recall: float | None = None
    r2: float | None = None
    rank_correlation: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = ("name", "k", "width", "penalty", "mean_recall", "r2", "rank_correlation")
        accuracy = None if self.accuracy is None else self.accuracy.to_json()
        return {name: getattr(self, name) for name in plain} | {"accuracy": accuracy}


@dataclass(frozen=True)
class DenseResult:
    """Read-outs of one target.

    Attributes:
        target: what it is called.
        classes: names of its classes; None for a number.
        layer: the transcoder's layer.
        read_outs: the probes.
        correlations: `(n_features,)` Spearman's rank correlation of each feature's map with the target, over the test
            patches; of a target of classes with being of any class but the first.
        n: patches of each split.
        by_class: `(classes, n_features)` the same with being of each class; None for a number.
    """

    target: str
    classes: list[str] | None
    layer: int
    read_outs: list[ReadOut]
    correlations: Float[Tensor, " features"]
    n: dict[str, int] = field(default_factory=dict)
    by_class: Float[Tensor, "classes features"] | None = None

    def strongest(self, n: int, of: str | None = None) -> list[tuple[int, float]]:
        """The features that go with the target most, by the size of their correlation.

        Args:
            n: how many.
            of: a class: those that go with being of it; None: with the target, or with any class but the first.
        """
        values = self.correlations
        if of is not None:
            assert self.by_class is not None
            assert self.classes is not None
            values = self.by_class[self.classes.index(of)]
        order = values.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(feature, float(values[feature])) for feature in order]

    def to_json(self, features: int = 50) -> dict[str, Any]:
        """Plain values, with the strongest features."""
        return {
            "target": self.target,
            "classes": self.classes,
            "layer": self.layer,
            "patches": self.n,
            "read_outs": [read_out.to_json() for read_out in self.read_outs],
            "features": _features(self.strongest(features)),
            "features_by_class": None
            if self.classes is None
            else {name: _features(self.strongest(_OF_CLASS, name)) for name in self.classes},
        }


def _features(found: list[tuple[int, float]]) -> list[dict[str, Any]]:
    return [{"feature": feature, "rank_correlation": value} for feature, value in found]


def read_out(
    backbone: Backbone,
    clt: CrossLayerTranscoder,
    splits: Mapping[str, Iterable[Batch]],
    target: TargetFn,
    name: str,
    classes: Sequence[str] | None = None,
    layer: int = -1,
    ks: Sequence[int] = (),
    seed: int = 0,
) -> DenseResult:
    """Linear and k-sparse read-outs of every patch: learned on `train`, regularised by `val`, measured on `test`.

    Args:
        backbone: the frozen backbone.
        clt: the transcoder; its features are what one of its layers rebuilds.
        splits: batches of `train`, `val` and `test`.
        target: what is to be read at every patch.
        name: what to call it.
        classes: names of the target's classes; None: it is a number.
        layer: the transcoder's layer; negative ones count from the end.
        ks: of k-sparse read-outs of the features and the codes.
        seed: of the intervals' draws.

    Raises:
        UserError: a target of another shape, an empty split, or one that never changes.
    """
    if clt.sites.write == "final":
        raise UserError("a dense read-out is of patches: the site final has one vector per image")
    seen = {split: _collect(backbone, clt, splits[split], target, classes, layer, split) for split in SPLITS}
    n_classes = 0 if classes is None else len(classes)
    found: list[ReadOut] = []
    probes: dict[tuple[str, int | None], Probe] = {}
    test = seen["test"]
    plan = [(kind, k) for kind in READ_OUTS for k in (None, *_sparse(kind, ks, seen["train"]))]
    for kind, k in track(plan, f"read-outs of {name}", unit="read-outs"):
        learned, given = READ_OUTS[kind]
        if (learned, k) not in probes:
            train, val = (Rows(seen[split].x[learned], seen[split].y) for split in ("train", "val"))
            probes[learned, k] = (
                fit_numbers(train, val, k) if classes is None else fit_classes(train, val, n_classes, k)
            )
        probe = probes[learned, k]
        base = ReadOut(kind, k, test.x[learned].shape[1], probe.penalty)
        found.append(_measure(base, probe(test.x[given]), test, n_classes, seed))
    level = test.y[:, None] if classes is None else _one_hot(test.y, n_classes)
    correlations = spearman(test.x["codes"], level)
    return DenseResult(
        name,
        None if classes is None else list(classes),
        layer % clt.n_layers,
        found,
        correlations[-1],
        {split: len(patches.y) for split, patches in seen.items()},
        None if classes is None else correlations[:-1],
    )


def _one_hot(y: Tensor, n_classes: int) -> Tensor:
    """`(n, classes + 1)`: being of each class, and of any but the first."""
    return torch.cat([torch.nn.functional.one_hot(y, n_classes), (y > 0)[:, None]], 1).float()


def demo_target(backbone: Backbone, seed: int, size: int, what: str) -> tuple[TargetFn, list[str] | None]:
    """What the demo's renders know of every patch.

    Args:
        backbone: the frozen backbone, whose preprocessing the maps follow.
        seed: of the renders of a split (`Demo.parameters["render_seeds"][split]`).
        size: of the renders, in pixels.
        what: of `DEMO_TARGETS`. `shape`: the shape that covers half the patch or more, or the background; `depth`: the
            mean place, from back to front, of what is in front in it (`renders.DEPTHS`); `position`: how far the
            patch's middle is from that of what is seen of the object, in sides of the picture (NaN where nothing is).

    Returns:
        the target; and the names of its classes, None for numbers.

    Raises:
        UserError: another target.
    """
    from clt_lightning.data.worlds import renders

    if what not in DEMO_TARGETS:
        raise UserError(f"the demo's renders know {', '.join(DEMO_TARGETS)}, not {what!r}")
    rows, columns = backbone.grid
    where = pixel_sources(backbone, size)

    def target(batch: Batch) -> Tensor:
        found = []
        for key, label in zip(batch["key"], batch["label"].tolist()):
            depth = renders.depth_map(seed, _index_of(str(key)), size=size)
            pixels = torch.from_numpy(depth[where[0], where[1]].astype(np.float32))
            inside = pixels == renders.DEPTHS.index("object")
            if what == "depth":
                found.append(_patches(pixels, rows, columns))
            elif what == "position":
                found.append(_distances(inside, rows, columns))
            else:
                covered = _patches(inside.float(), rows, columns)
                found.append(torch.where(covered >= 0.5, label // len(renders.COLOURS) + 1, 0))
        return torch.stack(found)

    return target, ["background", *renders.SHAPES] if what == "shape" else None


def pixel_sources(backbone: Backbone, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pixel of a square picture each pixel of the backbone's input shows: rows and columns, `(side, side)` each.

    Found by sending two ramps through the backbone's own preprocessing, whatever it scales and crops.
    """
    ramp = np.linspace(0, 255, size)
    picture = np.zeros((size, size, 3), np.uint8)
    picture[:, :, 0], picture[:, :, 1] = np.rint(ramp)[:, None], np.rint(ramp)[None, :]
    seen = backbone.preprocess(Image.fromarray(picture))
    places = []
    for channel in (0, 1):
        level = seen[channel].double().numpy() * backbone.std[channel] + backbone.mean[channel]
        places.append(np.clip(np.rint(level * (size - 1)), 0, size - 1).astype(np.int64))
    return places[0], places[1]


@dataclass(frozen=True)
class _Seen:
    """Patches of one split: by source `(patches, width)`, the target `(patches,)`, and each patch's image."""

    x: dict[str, Tensor]
    y: Tensor
    image: Tensor


@torch.no_grad()
def _collect(
    backbone: Backbone,
    clt: CrossLayerTranscoder,
    batches: Iterable[Batch],
    target: TargetFn,
    classes: Sequence[str] | None,
    layer: int,
    split: str,
) -> _Seen:
    span = backbone.tokens.span("patch")
    rows: dict[str, list[Tensor]] = {"features": [], "reconstruction": [], "codes": []}
    targets, owners, seen = [], [], 0
    for batch in batches:
        n = len(batch["image"])
        if not n:
            continue
        y = target(batch)
        if tuple(y.shape) != (n, *backbone.grid) or y.is_floating_point() != (classes is None):
            kind = "float numbers" if classes is None else "int64 classes"
            raise UserError(
                f"the target must give {kind} of shape (images, rows, columns) = {(n, *backbone.grid)}, got "
                f"{tuple(y.shape)} of {str(y.dtype).removeprefix('torch.')}"
            )
        y = y.flatten().cpu()
        if classes is not None and y.numel() and int(y.max()) >= len(classes):
            raise UserError(f"the target gives class {int(y.max())}, there are {len(classes)}")
        counts = y >= 0 if classes is not None else y.isfinite()
        for source, tokens in tokens_of_layer(backbone, clt, batch["image"], layer).items():
            rows[source].append(tokens[:, span].flatten(0, 1).float().cpu()[counts])
        targets.append(y[counts])
        owners.append((torch.arange(n).repeat_interleave(y.numel() // n) + seen)[counts])
        seen += n
    if not targets or not sum(map(len, targets)):
        raise UserError(f"split {split!r} has no patch with a target")
    return _Seen(
        {source: torch.cat(tensors) for source, tensors in rows.items()}, torch.cat(targets), torch.cat(owners)
    )


def _sparse(kind: str, ks: Sequence[int], train: _Seen) -> tuple[int, ...]:
    return check_ks(ks, train.x[kind].shape[1]) if kind in ("features", "codes") else ()


def _measure(base: ReadOut, out: Tensor, test: _Seen, n_classes: int, seed: int) -> ReadOut:
    if n_classes == 0:
        y, read = test.y.double(), out[:, 0].double()
        spread = float((y - y.mean()).square().sum())
        r2 = 1 - float((y - read).square().sum()) / spread if spread > 0 else math.nan
        return replace(base, r2=r2, rank_correlation=float(spearman(out, test.y)[0]))
    predicted = out.argmax(1)
    n = int(test.image.max()) + 1
    count = torch.bincount(test.image, minlength=n)
    right = torch.bincount(test.image[predicted == test.y], minlength=n)
    shares = (right[count > 0] / count[count > 0]).double().numpy()
    return replace(
        base,
        accuracy=mean_intervals(shares[:, None], _DRAWS, seed)[0],
        mean_recall=mean_recall(predicted, test.y, n_classes),
    )


def _index_of(key: str) -> int:
    """The number of a render, from its sample's key."""
    found = re.search(r"(?:^|/)s(\d+)$", key)
    if found is None:
        raise UserError(f"sample {key!r} is no render of the demo's tars, whose keys end in s0000000, s0000001, ...")
    return int(found[1])


def _distances(inside: Tensor, rows: int, columns: int) -> Tensor:
    """`(rows, columns)` from each patch's middle to the middle of what is true of `(side, side)`, in sides."""
    middle = (inside.nonzero().float() + 0.5).mean(0) / inside.shape[0]
    down = (torch.arange(rows) + 0.5) / rows - middle[0]
    across = (torch.arange(columns) + 0.5) / columns - middle[1]
    return torch.hypot(down[:, None], across[None])


def _patches(pixels: Tensor, rows: int, columns: int) -> Tensor:
    """`(rows, columns)` means over the patches of `(side, side)` pixels."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels[None, None], (rows, columns))[0, 0]
