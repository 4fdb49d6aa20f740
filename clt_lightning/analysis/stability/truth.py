"""How well features are those of a known world: the mean correlation coefficient (MCC) of codes."""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.analysis.one_to_one import assign
from clt_lightning.core.errors import UserError


def code_correlations(codes: Tensor, truth: Tensor) -> Tensor:
    """Pearson correlations of codes over tokens, `(F, G)` float64; 0 for a feature that never changes.

    Args:
        codes: `(tokens, F)`.
        truth: `(tokens, G)`, of the same tokens.
    """
    if codes.shape[0] != truth.shape[0]:
        raise UserError(f"codes of {codes.shape[0]:,} tokens cannot be compared with {truth.shape[0]:,} of the truth")
    a, b = (_standardised(part) for part in (codes, truth))
    return a.T @ b


def mean_correlation(codes: Tensor, truth: Tensor) -> float:
    """MCC: mean absolute correlation of the best one-to-one matching of features with true ones.

    Where there are fewer features than true ones, those without a partner count as 0: what was not found is missing.

    Args:
        codes: `(layers, tokens, F)` or `(tokens, F)`; layers are matched apart and count alike.
        truth: `(layers, tokens, G)` or `(tokens, G)`, the true codes of the same tokens.

    Raises:
        UserError: other tokens or layers.
    """
    if codes.ndim != truth.ndim or codes.shape[:-1] != truth.shape[:-1]:
        raise UserError(
            f"codes {tuple(codes.shape)} and the truth {tuple(truth.shape)} must agree in layers and tokens"
        )
    if codes.ndim == 2:
        codes, truth = codes[None], truth[None]
    found: list[float] = []
    for mine, true in zip(codes, truth):
        scores = code_correlations(mine, true).abs()
        rows, columns = assign(scores)
        found.append(float(scores[rows, columns].sum()) / true.shape[1])
    return float(sum(found) / len(found))


def _standardised(x: Tensor) -> Tensor:
    centred = x.double() - x.double().mean(0)
    norm = torch.linalg.norm(centred, dim=0)
    return torch.where(norm > 1e-12, centred / norm.clamp(min=1e-12), torch.zeros_like(centred))
