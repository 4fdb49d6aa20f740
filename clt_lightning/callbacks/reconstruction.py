"""How well each layer's MLP output is rebuilt, and by how many features, on validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from clt_lightning.callbacks.base import Evaluation
from clt_lightning.interventions.replacement import tokens_of
from clt_lightning.metrics import (
    FVU,
    L0,
    TOKEN_SETS,
    Cosine,
    DeadFeatures,
    FeaturesShare,
    check_token_sets,
    metric_device,
    present,
    select,
    token_mask,
)


class Reconstruction(Evaluation):
    """FVU, cosine, L0 and dead share of every layer and token set, over the whole split.

    Logs `<stage>/fvu/<token set>` (mean over layers) and `<stage>/fvu/<token set>/layer_<ll>`, and the same for
    `cosine`, `l0` and `dead`; `<stage>` is `val` or `test`. `<stage>/share/features` and `<stage>/share/skip` say how
    much of the centred reconstruction the sparse features carry and how much the linear skip, mean over layers, all
    tokens; with a skip also by token set and layer.

    Args:
        token_sets: which tokens are reported: `cls` ([CLS] alone; nearly constant in early layers, so it looks perfect
            there), `register`, `patch`, `all`; of all four those that the backbone has.

    Raises:
        UserError: on an unknown or repeated token set.
    """

    progress_bar = ("fvu/all",)

    def __init__(self, token_sets: Sequence[str] = TOKEN_SETS) -> None:
        self.token_sets = check_token_sets(token_sets, option="reconstruction.token_sets")
        self._fvu: dict[str, FVU] = {}
        self._cosine: dict[str, Cosine] = {}
        self._l0: dict[str, L0] = {}
        self._dead: dict[str, DeadFeatures] = {}
        self._share: dict[str, FeaturesShare] = {}

    def begin(self, trainer: pl.Trainer, pl_module: Any) -> None:
        clt, device = pl_module.transcoder, metric_device(pl_module.device)
        for name in present(self.token_sets, tokens_of(pl_module.clip, clt), "reconstruction.token_sets"):
            self._fvu[name] = FVU(clt.n_layers, clt.d_out).to(device)
            self._cosine[name] = Cosine(clt.n_layers).to(device)
            self._l0[name] = L0(clt.n_layers).to(device)
            self._dead[name] = DeadFeatures(clt.n_layers, clt.n_features).to(device)
            if clt.skip:
                self._share[name] = FeaturesShare(clt.n_layers, clt.d_out).to(device)

    def take(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any) -> None:
        acts, y_hat, codes = outputs["acts"], outputs["y_hat"], outputs["codes"]
        layout = acts.layout
        features = outputs["features"]
        active = codes.l0()
        for name in self._fvu:
            y, rebuilt = select(acts.y, name, layout), select(y_hat, name, layout)
            self._fvu[name].update(y, rebuilt)
            self._cosine[name].update(y, rebuilt)
            if features is not None:
                self._share[name].update(select(features, name, layout), rebuilt)
            counts = select(active, name, layout)
            self._l0[name].update(counts)
            mask = None if name == "all" else token_mask(name, layout, active.shape[1], active.device)
            chosen = codes if mask is None else codes.select_tokens(mask)
            self._dead[name].update(chosen.fired(), counts[0].numel())

    def results(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        kinds: dict[str, Any] = {"fvu": self._fvu, "cosine": self._cosine, "l0": self._l0, "dead": self._dead}
        for kind, metrics in kinds.items():
            for name, metric in metrics.items():
                layers = metric.compute()
                out[f"{kind}/{name}"] = layers.mean()
                out.update({f"{kind}/{name}/layer_{layer:02d}": value for layer, value in enumerate(layers)})
        shares = {name: metric.compute() for name, metric in self._share.items()}
        for name, layers in shares.items():
            out[f"share/features/{name}"] = layers.mean()
            out.update({f"share/features/{name}/layer_{layer:02d}": value for layer, value in enumerate(layers)})
        whole = next((shares[name].mean() for name in ("all", *shares) if name in shares), torch.tensor(1.0))
        return out | {"share/features": whole, "share/skip": 1 - whole}
