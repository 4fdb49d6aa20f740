"""AuxK: which tokens it takes, what it asks of the forward, its loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.training.losses.reconstruction import normalized_error
from clt_lightning.training.losses.warmup import check_part
from clt_lightning.transcoder.clt import CrossLayerTranscoder
from clt_lightning.transcoder.requests import AuxiliaryRequest


@dataclass
class AuxKConfig:
    """AuxK (Gao et al. 2024): dead features rebuild what the live ones leave over.

    Args:
        coefficient: weight in the loss, on the same scale as the reconstruction; 0 turns it off.
        k: dead features a token may use in a layer; null means d_model / 2.
        dead_after_tokens: a feature is dead when it has not fired on that many tokens (of all processes together).
        token_fraction: share of a batch's tokens it is computed on; a sample, since few suffice to revive a feature.
            null: so many that dead features are at work half as often as live ones (at most a quarter of the tokens),
            which keeps AuxK under a quarter of the step.
        warmup_steps: optimizer steps over which the coefficient rises linearly from 0.
        warmup_fraction: the same as a share of the run (of `trainer.max_steps`), in the place of `warmup_steps`.
    """

    coefficient: float = 1 / 32
    k: int | None = None
    dead_after_tokens: int = 1_000_000
    token_fraction: float | None = None
    warmup_steps: int = 0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_part(self, "loss.auxk")


def auxiliary_tokens(config: AuxKConfig, n_tokens: int, k: int, dead: int, live: int) -> int:
    """How many tokens of a batch AuxK is computed on.

    Args:
        config: `token_fraction` says it, or null: see there.
        n_tokens: tokens of the batch.
        k: dead features that a token may use in a layer.
        dead: most dead features of any layer.
        live: codes of a token in a layer.
    """
    fraction = config.token_fraction
    if fraction is None:
        fraction = min(0.25, 0.5 * live / min(k, dead))
    return max(1, round(fraction * n_tokens))


def auxiliary_request(
    config: AuxKConfig,
    clt: CrossLayerTranscoder,
    tokens_since_fired: Tensor,
    n_tokens: int,
    generator: torch.Generator,
) -> AuxiliaryRequest | None:
    """What AuxK asks of the forward; None where it is off, and where no feature is dead.

    Args:
        config: of AuxK.
        clt: the transcoder.
        tokens_since_fired: `(layers, F)`, of all features.
        n_tokens: tokens of the batch.
        generator: of the tokens that are chosen; on the CPU.
    """
    if not config.coefficient:
        return None
    dead = tokens_since_fired >= config.dead_after_tokens
    counts = tuple(dead.sum(1).tolist())
    most = max(counts)
    if not most:
        return None
    k = config.k or max(1, clt.d_out // 2)
    live = clt.activation.most_active or 64  # others bound nothing: a usual number
    n = auxiliary_tokens(config, n_tokens, k, most, live)
    chosen = torch.randperm(n_tokens, generator=generator)[:n]
    return AuxiliaryRequest(dead, k, chosen.to(dead.device), counts)


def split_request(request: AuxiliaryRequest | None, start: int, stop: int) -> AuxiliaryRequest | None:
    """The part of an auxiliary request that falls into tokens `start..stop - 1`, renumbered; None if nothing does."""
    if request is None:
        return None
    inside = request.tokens[(request.tokens >= start) & (request.tokens < stop)] - start
    return AuxiliaryRequest(request.dead, request.k, inside, request.counts) if inside.numel() else None


def auxk_loss(y: Tensor, y_hat: Tensor, auxiliary: Tensor, variance: Tensor) -> Tensor:
    """Normalised squared error between what is left over and what dead features make of it.

    The residual is detached (the live features learn nothing here) and already free of the decoder bias, which the
    auxiliary reconstruction therefore leaves out. The scale is the main loss's.

    Args:
        y: `(layers, tokens, d_model)` targets of the auxiliary tokens.
        y_hat: the main reconstruction of the same tokens.
        auxiliary: the dead features' reconstruction, without bias.
        variance: `(layers,)` total variance of y.
    """
    residual = (y.to(y_hat.dtype) - y_hat).detach()
    return normalized_error(residual, auxiliary, variance).mean()
