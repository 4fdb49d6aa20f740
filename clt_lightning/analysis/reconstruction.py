"""How well MLP outputs are rebuilt, by layer and token set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from clt_lightning.metrics import FVU, L0, MSE, Cosine, DeadFeatures, TokenLayout, select, token_mask
from clt_lightning.transcoder import Codes, CrossLayerTranscoder


class Reconstruction:
    """MSE, FVU, R2, cosine, L0 and dead share of every layer and token set.

    Args:
        clt: the transcoder.
        token_sets: which sets.
        device: where the sums live.
    """

    def __init__(self, clt: CrossLayerTranscoder, token_sets: Sequence[str], device: torch.device) -> None:
        L, d = clt.n_layers, clt.d_out

        def metrics() -> dict[str, Any]:
            # FVU and MSE come from the same sums: one group, updated once
            errors = MetricCollection({"fvu": FVU(L, d), "mse": MSE(L, d)}, compute_groups=[["fvu", "mse"]])
            made = {"errors": errors, "cosine": Cosine(L), "l0": L0(L), "dead": DeadFeatures(L, clt.n_features)}
            return {name: metric.to(device) for name, metric in made.items()}

        self.metrics = {name: metrics() for name in token_sets}

    def update(self, y: Tensor, y_hat: Tensor, codes: Codes, layout: TokenLayout) -> None:
        """Take in one batch of whole images: `(L, tokens, d)` true and rebuilt MLP outputs, and the codes."""
        active = codes.l0()
        for name, metrics in self.metrics.items():
            true, rebuilt, counts = (select(t, name, layout) for t in (y, y_hat, active))
            metrics["errors"].update(true, rebuilt)
            metrics["cosine"].update(true, rebuilt)
            metrics["l0"].update(counts)
            mask = None if name == "all" else token_mask(name, layout, active.shape[1], active.device)
            chosen = codes if mask is None else codes.select_tokens(mask)
            metrics["dead"].update(chosen.fired(), counts[0].numel())

    def result(self) -> dict[str, dict[str, Tensor]]:
        """kind -> token set -> `(L,)`, of all processes, all of which must call this."""
        out: dict[str, dict[str, Tensor]] = {kind: {} for kind in ("mse", "fvu", "r2", "cosine", "l0", "dead")}
        for name, metrics in self.metrics.items():
            found = dict(metrics["errors"].compute())
            found |= {kind: metrics[kind].compute() for kind in ("cosine", "l0", "dead")}
            found["r2"] = 1 - found["fvu"]
            for kind in out:
                out[kind][name] = found[kind].reshape(-1).cpu()
        return out
