"""How well units of sparse attention rebuild what attention adds, and which heads they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis.attention_heads import HeadSums, Spans
from clt_lightning.analysis.suite import Analysis, Batch, Subject
from clt_lightning.analysis.tower import Needs
from clt_lightning.core.errors import UserError
from clt_lightning.core.say import say
from clt_lightning.core.tokens import TOKEN_SETS, present
from clt_lightning.interventions.attention import rebuild_attention
from clt_lightning.interventions.heads import HeadProjection
from clt_lightning.metrics import L0, DeadFeatures, ExactMetric, FVUAndMSE, select, token_mask
from clt_lightning.transcoder.attention import at_heads

#: What is measured of every layer and token set
KINDS = ("fvu", "l0", "dead")


@dataclass(frozen=True)
class UnitsResult:
    """Of sparse attention on the untouched model.

    Attributes:
        tables: `fvu` of `attn_out`, `l0`, `dead` -> token set -> `(L,)` float64; of an autoencoder of the heads'
            outputs also `fvu_z`, of these.
        spans: heads that units stand for; None where that was not asked for, or the output of attention is no sum over
            heads.
    """

    tables: dict[str, dict[str, Tensor]]
    spans: Spans | None = field(default=None, repr=False)


class AttentionUnits(Analysis):
    """FVU of `attn_out`, L0 and dead share of every layer and token set, and the heads that units span.

    Args:
        token_sets: which query positions; None: all sets that there are.
        spans: whether to look at heads, for one more forward of the tower.
    """

    name = "attention"
    needs = Needs(attention_sites=True)

    def __init__(self, token_sets: Sequence[str] | None = None, spans: bool = False) -> None:
        self.token_sets, self.with_spans = token_sets, spans

    def begin(self, subject: Subject) -> None:
        assert subject.attention is not None
        self._clip, self._units, device = subject.clip, subject.attention, subject.device
        self._layout = subject.clip.tokens  # at attention there is always one of every kind
        self._sets = present(self.token_sets, self._layout, "token_sets", TOKEN_SETS)
        L, d, F = self._units.n_layers, self._clip.d_model, self._units.n_features
        self._metrics: dict[str, dict[str, ExactMetric]] = {
            name: {"errors": FVUAndMSE(L, d).to(device), "l0": L0(L).to(device), "dead": DeadFeatures(L, F).to(device)}
            for name in self._sets
        }
        if at_heads(self._units):
            HeadProjection(self._clip).check()
            for metrics in self._metrics.values():
                metrics["z"] = FVUAndMSE(L, self._units.d_model).to(device)
        self._heads: HeadSums | None = None
        if self.with_spans:
            try:
                self._heads = HeadSums(self._clip, self._units).to(device)
            except UserError as error:  # on all processes alike
                say(f"heads that units span are left out: {error}")

    def update(self, batch: Batch) -> None:
        sites = batch.seen.attention_sites
        assert sites is not None
        with self._units.activation.not_tracking():
            out = rebuild_attention(self._clip, self._units, sites)
        y, y_hat, active = sites.y.flatten(1, 2), out.y_hat.flatten(1, 2), out.codes.l0()
        for name, metrics in self._metrics.items():
            true, rebuilt, counts = (select(t, name, self._layout) for t in (y, y_hat, active))
            metrics["errors"].update(true, rebuilt)
            if out.z_hat is not None:
                z, z_hat = (select(t.flatten(1, 2), name, self._layout) for t in (sites.of_heads(), out.z_hat))
                metrics["z"].update(z, z_hat)
            metrics["l0"].update(counts)
            mask = None if name == "all" else token_mask(name, self._layout, active.shape[1], active.device)
            chosen = out.codes if mask is None else out.codes.select_tokens(mask)
            metrics["dead"].update(chosen.fired(), counts[0].numel())
        if self._heads is not None:
            self._heads.update(batch.data["image"].to(self._clip.device), out.codes)

    def result(self) -> UnitsResult:
        kinds = (*KINDS, *(["fvu_z"] if at_heads(self._units) else []))
        tables: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
        for name, metrics in self._metrics.items():
            found: dict[str, Any] = {kind: metric.compute() for kind, metric in metrics.items()}
            found["fvu"] = found.pop("errors")[0]
            if "z" in found:
                found["fvu_z"] = found.pop("z")[0]
            for kind in kinds:
                tables[kind][name] = found[kind].reshape(-1).cpu()
        return UnitsResult(tables, None if self._heads is None else self._heads.spans())


class AttentionMeans(Analysis):
    """What every attention adds at each position, on average over images: what units must beat."""

    name = "attention_means"
    needs = Needs(attention_sites=True)

    def begin(self, subject: Subject) -> None:
        clip = subject.clip
        self._sums = _Sums(clip.n_layers, clip.n_positions, clip.d_model).to(subject.device)

    def update(self, batch: Batch) -> None:
        assert batch.seen.attention_sites is not None
        self._sums.update(batch.seen.attention_sites.y)

    def result(self) -> Tensor | None:
        """`(layers, positions, d_model)` float64, of all processes' images; None without any."""
        sums, images = self._sums.compute()
        return sums / images if int(images) else None


class _Sums(ExactMetric):
    sums: Tensor
    images: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(*shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, y: Tensor) -> None:
        self.sums += y.to(self.sums.device).double().sum(1)
        self.images += y.shape[1]

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.sums, self.images
