"""How well a transcoder's site is rebuilt, by layer and token set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from clt_lightning.analysis.suite import Analysis, Batch, Subject
from clt_lightning.metrics import (
    L0,
    Cosine,
    DeadFeatures,
    ExactMetric,
    FeaturesShare,
    FVUAndMSE,
    select,
    token_mask,
)

#: What `ReconstructionErrors` measures of every layer and token set
KINDS = ("mse", "fvu", "r2", "cosine", "l0", "dead")


class ReconstructionErrors(Analysis):
    """MSE, FVU, R2, cosine, L0 and dead share of every layer and token set.

    Args:
        token_sets: which sets.
        share: also the features' share of the centred reconstruction, where there is a linear skip beside them.
    """

    name = "reconstruction"

    def __init__(self, token_sets: Sequence[str], share: bool = False) -> None:
        self.token_sets, self.share = list(token_sets), share

    def begin(self, subject: Subject) -> None:
        self._clt, device = subject.clt, subject.device
        L, d, F = self._clt.n_layers, self._clt.d_out, self._clt.n_features
        self.share &= self._clt.skip

        def metrics() -> dict[str, ExactMetric]:
            made = {"errors": FVUAndMSE(L, d), "cosine": Cosine(L), "l0": L0(L), "dead": DeadFeatures(L, F)}
            made |= {"share": FeaturesShare(L, d)} if self.share else {}
            return {name: metric.to(device) for name, metric in made.items()}

        # the kinds of tokens divide an image among them: sums over all tokens are theirs together
        kinds, sets = subject.tokens.kinds, self.token_sets
        self._parts = list(kinds) if "all" in sets and set(kinds) & set(sets) else []
        measured = dict.fromkeys([*self._parts, *(name for name in sets if not self._parts or name != "all")])
        self._metrics = {name: metrics() for name in measured}

    def update(self, batch: Batch) -> None:
        y, y_hat, codes, layout = batch.seen.y, batch.y_hat, batch.codes, batch.layout
        active = codes.l0()
        features = y_hat - self._clt.linear_part(batch.seen.x) if self.share else None
        for name, metrics in self._metrics.items():
            true, rebuilt, counts = (select(t, name, layout) for t in (y, y_hat, active))
            metrics["errors"].update(true, rebuilt)
            metrics["cosine"].update(true, rebuilt)
            metrics["l0"].update(counts)
            mask = None if name == "all" else token_mask(name, layout, active.shape[1], active.device)
            chosen = codes if mask is None else codes.select_tokens(mask)
            metrics["dead"].update(chosen.fired(), counts[0].numel())
            if features is not None:
                metrics["share"].update(select(features, name, layout), rebuilt)

    def result(self) -> dict[str, dict[str, Tensor]]:
        """kind -> token set -> `(L,)`; `share` as well, where it was asked for and there is a linear skip."""
        kinds = (*KINDS, "share") if self.share else KINDS
        if self._parts and "all" not in self._metrics:  # before any is computed: a metric keeps what it gave
            self._metrics["all"] = self._whole()
        out: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
        for name in self.token_sets:
            found = {kind: metric.compute() for kind, metric in self._metrics[name].items()}
            found["fvu"], found["mse"] = found.pop("errors")
            found["r2"] = 1 - found["fvu"]
            for kind in out:
                out[kind][name] = found[kind].reshape(-1).cpu()
        return out

    def _whole(self) -> dict[str, ExactMetric]:
        """The metrics of all tokens, out of those of each kind."""
        first, *others = (self._metrics[name] for name in self._parts)
        whole: dict[str, Any] = {kind: metric.clone() for kind, metric in first.items()}
        for other in others:
            for kind, metric in whole.items():
                metric.merge_state(other[kind])
        return whole
