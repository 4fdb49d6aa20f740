"""What sparse attention is worth: reconstruction, accuracy with attention replaced, and the heads that units span."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.intervals import Interval, mean_intervals
from clt_lightning.analysis.run import Run
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import finite
from clt_lightning.core.progress import Progress
from clt_lightning.core.say import say
from clt_lightning.interventions.replacement import replaced
from clt_lightning.training.attention import Sums, read_attention
from clt_lightning.transcoder.attention import SparseAttention

DRAWS = 1000


@dataclass(frozen=True)
class Spans:
    """Which of the model's heads each unit stands for.

    Attributes:
        shares: `(layers, F, heads)`: of what a unit explains of the layer's output, what each head wrote; at least 0,
            sums 1, or all 0 for a unit that explains nothing.
        own: `(layers, F)`: the share of the head by whose pattern it moves; NaN where units have their own.
        effective: `(layers, F)`: number of heads that would share alike, exp of the entropy; 0 for such a unit.
    """

    shares: Tensor
    own: Tensor
    effective: Tensor

    def numbers(self) -> list[dict[str, float | None]]:
        """By layer: units that explain anything, median effective heads, share of units over several, mean own."""
        rows: list[dict[str, float | None]] = []
        for layer in range(len(self.shares)):
            alive = self.effective[layer] > 0
            effective, own = self.effective[layer][alive], self.own[layer][alive]
            found = {
                "units": float(alive.sum()),
                "median": float(effective.median()) if len(effective) else np.nan,
                "several": float((effective >= 2).double().mean()),
                "own": float(own.mean()),
            }
            rows.append({name: finite(value) for name, value in found.items()})
        return rows


@dataclass(frozen=True)
class AttentionReport:
    """What was measured.

    Attributes:
        split: of the data; `images`: how many of it.
        fvu, l0: `(layers,)` of `attn_out` on the untouched model.
        top1: by arm, `original` first.
        lost: by arm, top-1 of the original less the arm's, paired.
        spans: heads that units span; None where the output of attention is no sum over heads.
    """

    split: str
    images: int
    fvu: Tensor
    l0: Tensor
    top1: dict[str, Interval]
    lost: dict[str, Interval]
    spans: Spans | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "split": self.split,
            "images": self.images,
            "fvu": finite(self.fvu.tolist()),
            "l0": finite(self.l0.tolist()),
            "top1": {name: value.to_json() for name, value in self.top1.items()},
            "lost": {name: value.to_json() for name, value in self.lost.items()},
            "spans": None if self.spans is None else self.spans.numbers(),
        }


@torch.no_grad()
def measure(
    run: Run,
    attention: SparseAttention,
    *,
    split: str = "test",
    limit: int | None = None,
    mean_images: int = 1024,
    seed: int = 0,
    progress: bool = False,
) -> AttentionReport:
    """Reconstruction on the untouched model, accuracy in cascade, and spans, on a split of a run's data.

    Arms: every MLP replaced by the run's transcoder; every attention by the units; both; and what units must beat,
    every attention put to its mean at each position, alone and beside the transcoder.

    Args:
        run: with a transcoder of the MLPs, and class logits.
        attention: for the run's backbone.
        split: of the data.
        limit: images of it, evenly spaced; None for all.
        mean_images: training images behind the means.
        seed: of the bootstrap.
        progress: say how far it is.

    Raises:
        UserError: no labelled images, no class logits, or units of another backbone.
    """
    clip, clt, head = run.clip, run.transcoder, run.require_head("no accuracy to compare")
    means = mean_outputs(clip, (batch["image"] for batch in run.batches("train", limit=mean_images)))
    put = lambda layer, x, compute: means[layer].to(x).expand_as(x)  # noqa: E731
    makers: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "original": nullcontext,
        "MLPs": lambda: replaced(clip, clt),
        "attention": lambda: replaced(clip, None, attention=attention),
        "MLPs and attention": lambda: replaced(clip, clt, attention=attention),
        "attention at its mean": lambda: clip.override("attn_out", put),
    }
    sums = Sums(attention)
    spanning: _Spanning | None = _Spanning(clip, attention)
    right: dict[str, list[Tensor]] = {name: [] for name in makers}
    n = 0
    with Progress("sparse attention", limit, "images", show=progress) as bar:
        for batch in run.batches(split, limit=limit):
            labels = batch["label"]
            kept = labels >= 0
            images, labels = batch["image"][kept].to(clip.device), labels[kept]
            if not len(images):
                continue
            x, y, patterns = read_attention(clip, attention, images)
            out = attention(x, patterns)
            sums.update(y, out)
            try:
                if spanning is not None:
                    spanning.update(images, out.codes, y)
            except UserError as error:
                say(f"heads that units span are left out: {error}")
                spanning = None
            for name, make in makers.items():
                with make():
                    logits = clip.logits(clip.encode_image(images), head)
                right[name].append((logits.argmax(1).cpu() == labels).double())
            n += len(images)
            bar.update(len(images))
    if not n:
        raise UserError(f"split {split!r} has no labelled images: there is no accuracy to compare")
    columns = {name: torch.cat(rows).numpy() for name, rows in right.items()}
    own = columns["original"]
    every = np.stack([*columns.values(), *(own - column for column in columns.values())], 1)
    found = mean_intervals(every, DRAWS, seed)
    names = list(columns)
    fvu, l0 = sums.result()
    return AttentionReport(
        split,
        n,
        fvu,
        l0,
        top1=dict(zip(names, found)),
        lost=dict(zip(names, found[len(names) :])),
        spans=None if spanning is None else spanning.result(),
    )


@torch.no_grad()
def mean_outputs(clip: Backbone, batches: Iterable[Tensor]) -> Tensor:
    """`(layers, positions, d_model)` float64: what each attention adds at each position, on average over images.

    Args:
        clip: the backbone.
        batches: `(images, 3, size, size)` each.

    Raises:
        UserError: no images.
    """
    total, n = torch.zeros(clip.n_layers, clip.n_positions, clip.d_model, dtype=torch.float64, device=clip.device), 0
    for images in batches:
        found = clip.read(images.to(clip.device), "attn_out")["attn_out"]
        total += found.unflatten(1, (-1, clip.n_positions)).double().sum(1)
        n += len(images)
    if not n:
        raise UserError("no training images: there are no mean outputs of attention")
    return total / n


@torch.no_grad()
def spanned_heads(clip: Backbone, attention: SparseAttention, batches: Iterable[Tensor]) -> Spans:
    """Which of the model's heads each unit stands for.

    What a unit explains of a layer's output is the covariance, over tokens, of its code with the output along the
    vector that it writes; the output being a sum over heads, so is this.

    Args:
        clip: the backbone.
        attention: for this backbone.
        batches: `(images, 3, size, size)` each.

    Raises:
        UserError: a backbone whose attention's output is no sum over heads (a norm stands behind them).
    """
    found = _Spanning(clip, attention)
    for images in batches:
        x, y, patterns = read_attention(clip, attention, images.to(clip.device))
        found.update(images.to(clip.device), attention(x, patterns).codes, y)
    return found.result()


class _Spanning:
    """Sums over tokens, for `Spans`."""

    def __init__(self, clip: Backbone, attention: SparseAttention) -> None:
        self.clip, self.attention = clip, attention
        self.parts = [clip.attention_parts(layer) for layer in range(clip.n_layers)]
        self.scales = [clip.family.branch_scale(layer, 1) for layer in range(clip.n_layers)]
        L, units, H = attention.n_layers, attention.n_features, self.parts[0].n_heads
        width, device = self.parts[0].out.weight.shape[1], clip.device
        self.products = torch.zeros(L, units, H, dtype=torch.float64, device=device)
        self.codes = torch.zeros(L, units, dtype=torch.float64, device=device)
        self.outputs = torch.zeros(L, width, dtype=torch.float64, device=device)
        self.n = 0

    def update(self, images: Tensor, codes: Any, y: Tensor) -> None:
        z = self.clip.read(images, "attn_z")["attn_z"].double()
        if not self.n:
            self._check(z, y)
        for layer in range(len(z)):
            pairs, values = codes.layer(layer)
            through = self._through(layer)
            for start in range(0, len(values), 1 << 16):
                some = slice(start, start + (1 << 16))
                units, value = pairs.features[some], values[some].double()
                terms = (through[units] * z[layer][pairs.tokens[some]]).unflatten(1, (self.products.shape[2], -1))
                self.products[layer].index_add_(0, units, terms.sum(2) * value[:, None])
                self.codes[layer].index_add_(0, units, value)
            self.outputs[layer] += z[layer].sum(0)
        self.n += z.shape[1]

    def result(self) -> Spans:
        explained = []
        for layer in range(len(self.products)):
            mean = self._through(layer) * (self.outputs[layer] / max(1, self.n))
            by_head = mean.unflatten(1, (self.products.shape[2], -1)).sum(2)
            explained.append(self.products[layer] - self.codes[layer][:, None] * by_head)
        positive = torch.stack(explained).clamp(min=0)
        total = positive.sum(2, keepdim=True)
        shares = torch.where(total > 0, positive / total.clamp(min=1e-300), 0.0)
        entropy = -(shares * shares.clamp(min=1e-300).log()).sum(2)
        effective = torch.where(total[..., 0] > 0, entropy.exp(), 0.0)
        own = torch.full_like(effective, torch.nan)
        if self.attention.d_qk is None:
            own = shares.gather(2, self.attention.head_of.expand(len(shares), -1)[..., None])[..., 0]
        return Spans(shares, own, effective)

    def _through(self, layer: int) -> Tensor:
        """`(F, heads x channels)`: how the heads' outputs move the layer's output along what each unit writes."""
        writes = self.attention.W_dec[layer].detach().double() * self.attention.y_scale[layer]
        scale = self.scales[layer]
        writes = writes if scale is None else writes * scale.double()
        return writes @ self.parts[layer].out.weight.double()

    def _check(self, z: Tensor, y: Tensor) -> None:
        for layer, (part, scale) in enumerate(zip(self.parts, self.scales)):
            made = z[layer] @ part.out.weight.double().T
            made = made if part.out.bias is None else made + part.out.bias.double()
            made = made if scale is None else made * scale.double()
            if (made - y[layer].flatten(0, 1).double()).norm() > 1e-2 * made.norm():
                raise UserError(
                    f"'{self.clip.name}', layer {layer}: the output of attention is no sum over heads (a norm stands "
                    "behind them), so that heads have no shares in it"
                )
