"""How well each layer's MLP output is rebuilt, and by how many features, on validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from clt_lightning.analysis.attention_units import AttentionUnits
from clt_lightning.analysis.reconstruction import ReconstructionErrors
from clt_lightning.analysis.suite import Analysis
from clt_lightning.callbacks.measuring import Measuring
from clt_lightning.interventions.replacement import tokens_of
from clt_lightning.metrics import TOKEN_SETS, check_token_sets, present


class Reconstruction(Measuring):
    """FVU, cosine, L0 and dead share of every layer and token set, over the whole split.

    Logs `<stage>/fvu/<token set>` (mean over layers) and `<stage>/fvu/<token set>/layer_<ll>`, and the same for
    `cosine`, `l0` and `dead`; `<stage>` is `val` or `test`. `<stage>/share/features` and `<stage>/share/skip` say how
    much of the centred reconstruction the sparse features carry and how much the linear skip, mean over layers, all
    tokens; with a skip also by token set and layer. Of sparse attention beside the transcoder:
    `<stage>/attention/fvu/<token set>` (of what attention adds), `.../l0/...` and `.../dead/...`, and by layer.

    Args:
        token_sets: which tokens are reported: `cls` ([CLS] alone; nearly constant in early layers, so it looks perfect
            there), `register`, `patch`, `all`; of all four those that the backbone has.

    Raises:
        UserError: on an unknown or repeated token set.
    """

    def __init__(self, token_sets: Sequence[str] = TOKEN_SETS) -> None:
        self.token_sets = check_token_sets(token_sets, option="reconstruction.token_sets")

    def analyses(self, trainer: pl.Trainer, pl_module: Any) -> list[Analysis]:
        layout = tokens_of(pl_module.clip, pl_module.transcoder)
        found: list[Analysis] = [
            ReconstructionErrors(present(self.token_sets, layout, "reconstruction.token_sets"), share=True)
        ]
        return found if pl_module.attention is None else [*found, AttentionUnits()]
