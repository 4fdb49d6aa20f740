"""How well a transcoder's site is rebuilt, by layer and token set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics import MetricCollection

from clt_lightning.analysis.suite import Analysis, Batch, Subject
from clt_lightning.metrics import FVU, L0, MSE, Cosine, DeadFeatures, FeaturesShare, select, token_mask

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

        def metrics() -> dict[str, Any]:
            # FVU and MSE come from the same sums: one group, updated once
            errors = MetricCollection({"fvu": FVU(L, d), "mse": MSE(L, d)}, compute_groups=[["fvu", "mse"]])
            made = {"errors": errors, "cosine": Cosine(L), "l0": L0(L), "dead": DeadFeatures(L, F)}
            made |= {"share": FeaturesShare(L, d)} if self.share else {}
            return {name: metric.to(device) for name, metric in made.items()}

        self._metrics = {name: metrics() for name in self.token_sets}

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
        out: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
        for name, metrics in self._metrics.items():
            found = dict(metrics["errors"].compute())
            found |= {kind: metric.compute() for kind, metric in metrics.items() if kind != "errors"}
            found["r2"] = 1 - found["fvu"]
            for kind in out:
                out[kind][name] = found[kind].reshape(-1).cpu()
        return out
