"""Which of the model's heads each unit of sparse attention, or feature of an autoencoder, stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import finite
from clt_lightning.interventions.attention import read_attention, rebuild_attention
from clt_lightning.interventions.heads import HeadProjection
from clt_lightning.metrics import ExactMetric
from clt_lightning.transcoder import Codes, CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention, SparseAttention, at_heads


@dataclass(frozen=True)
class Spans:
    """Which of the model's heads each unit stands for.

    Attributes:
        shares: `(layers, F, heads)`: of what a unit explains of the layer's output, what each head wrote; at least 0,
            sums 1, or all 0 for a unit that explains nothing.
        own: `(layers, F)`: the share of the head by whose pattern it moves; NaN where units have their own, and of an
            autoencoder's features, which move by none.
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


@torch.no_grad()
def spanned_heads(clip: Backbone, attention: AnyAttention, batches: Iterable[Tensor]) -> Spans:
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
    found = HeadSums(clip, attention)
    for images in batches:
        sites = read_attention(clip, images.to(clip.device), at_heads(attention))
        found.update(images.to(clip.device), rebuild_attention(clip, attention, sites).codes)
    return found.spans()


class HeadSums(ExactMetric):
    """Sums over tokens, for `Spans`; over all processes' images.

    Args:
        clip: the backbone.
        attention: for this backbone.

    Raises:
        UserError: the output of attention is no sum over heads, or features are in units of each token's own size.
    """

    products: Tensor
    codes: Tensor
    outputs: Tensor
    n: Tensor

    def __init__(self, clip: Backbone, attention: AnyAttention) -> None:
        super().__init__()
        if isinstance(attention, CrossLayerTranscoder) and attention.normalization == "token":
            raise UserError("normalize: token: what a feature writes is in units of each token, and no sum over heads")
        self._of = clip, attention  # a tuple: no parts of this module
        self._project = HeadProjection(clip)
        L, units, H = attention.n_layers, attention.n_features, self._project.parts[0].n_heads
        shapes = {"products": (L, units, H), "codes": (L, units), "outputs": (L, clip.site_width("attn_z"))}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(*shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self._heads = H
        self._project.check()

    def update(self, images: Tensor, codes: Codes) -> None:
        """Takes in some images.

        Args:
            images: `(images, 3, size, size)`.
            codes: `(layers, images * positions, F)`, the units' codes of them.
        """
        z = self._of[0].read(images, "attn_z")["attn_z"].to(self.products)
        for layer in range(len(z)):
            pairs, values = codes.layer(layer)
            through = self._through(layer)
            for start in range(0, len(values), 1 << 16):
                some = slice(start, start + (1 << 16))
                units, value = pairs.features[some], values[some].to(through)
                terms = (through[units] * z[layer][pairs.tokens[some]]).unflatten(1, (self._heads, -1))
                self.products[layer].index_add_(0, units, terms.sum(2) * value[:, None])
                self.codes[layer].index_add_(0, units, value)
            self.outputs[layer] += z[layer].sum(0)
        self.n += z.shape[1]

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.products, self.codes, self.outputs, self.n

    def spans(self) -> Spans:
        """Of all processes' images so far; all of them must call this."""
        products, codes, outputs, n = self.compute()
        explained = []
        for layer in range(len(products)):
            mean = self._through(layer) * (outputs[layer] / max(1, int(n)))
            by_head = mean.unflatten(1, (self._heads, -1)).sum(2)
            explained.append(products[layer] - codes[layer][:, None] * by_head)
        positive = torch.stack(explained).clamp(min=0)
        total = positive.sum(2, keepdim=True)
        shares = torch.where(total > 0, positive / total.clamp(min=1e-300), 0.0)
        entropy = -(shares * shares.clamp(min=1e-300).log()).sum(2)
        effective = torch.where(total[..., 0] > 0, entropy.exp(), 0.0)
        own = torch.full_like(effective, torch.nan)
        attention = self._of[1]
        if isinstance(attention, SparseAttention) and attention.d_qk is None:
            own = shares.gather(2, attention.head_of.to(shares.device).expand(len(shares), -1)[..., None])[..., 0]
        return Spans(shares, own, effective)

    def _through(self, layer: int) -> Tensor:
        """`(F, heads x channels)`: how the heads' outputs move the layer's output along what each unit writes."""
        attention = self._of[1]
        vectors = attention.W_dec[layer].detach().to(self.products)
        vectors = vectors if isinstance(attention, SparseAttention) else vectors[:, 0]
        writes = vectors * attention.y_scale[layer].to(self.products)
        weight = self._project.weight(layer, writes)
        return (writes @ weight.T if at_heads(attention) else writes) @ weight
