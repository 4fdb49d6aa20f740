"""The loss and its parts.

Conventions, the same for every part: mean over tokens, mean over layers, sum over features; weighed codes are in scaled
units (`|z| * decoder norm`). A part's value contains its coefficient, so the parts add up to the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.activations import JumpReLU
from clt_lightning.transcoder.clt import CrossLayerTranscoder
from clt_lightning.transcoder.codes import Codes
from clt_lightning.transcoder.requests import CLTOutput


@dataclass
class L1Config:
    """L1 penalty, `mean over layers, tokens of sum_f |z_f| * ||W_dec_f||`, with the norm of the concatenated decoders.

    Args:
        coefficient: weight in the loss; 0 turns it off.
        warmup_steps: optimizer steps over which the coefficient rises linearly from 0.
        warmup_fraction: the same as a share of the run (of `trainer.max_steps`), in the place of `warmup_steps`.
    """

    coefficient: float = 0.0
    warmup_steps: int = 0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        _check_part(self, "loss.l1")


@dataclass
class TanhConfig:
    """Tanh penalty, `mean over layers, tokens of sum_f tanh(c * |z_f| * ||W_dec_f||)`: close to L0, bounded a feature.

    Args:
        coefficient: weight in the loss; 0 turns it off.
        c: steepness; a code counts fully from about 2 / c on.
        warmup_steps: optimizer steps over which the coefficient rises linearly from 0.
        warmup_fraction: the same as a share of the run (of `trainer.max_steps`), in the place of `warmup_steps`.
    """

    coefficient: float = 0.0
    c: float = 4.0
    warmup_steps: int = 0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        _check_part(self, "loss.tanh")


@dataclass
class PreActivationConfig:
    """Pre-activation penalty, `sum_f relu(threshold_f - pre_f) * ||W_dec_f||`: pulls silent features back.

    Its gradient is dense, so the step takes the dense path when it is on.

    Args:
        coefficient: weight in the loss; 0 turns it off.
        warmup_steps: optimizer steps over which the coefficient rises linearly from 0.
        warmup_fraction: the same as a share of the run (of `trainer.max_steps`), in the place of `warmup_steps`.
    """

    coefficient: float = 0.0
    warmup_steps: int = 0
    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        _check_part(self, "loss.pre_activation")


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
        _check_part(self, "loss.auxk")


Penalty = L1Config | TanhConfig | PreActivationConfig | AuxKConfig


def _check_part(part: Penalty, name: str) -> None:
    check_fields(part, name)
    if part.coefficient < 0 or part.warmup_steps < 0:
        raise UserError(f"{name}: coefficient and warmup_steps must not be negative, got {part}")
    if not 0 <= part.warmup_fraction <= 1:
        raise UserError(f"{name}.warmup_fraction must lie in [0, 1], got {part.warmup_fraction}")
    if part.warmup_fraction and part.warmup_steps:
        raise UserError(f"{name}: set warmup_steps or warmup_fraction, not both (got {part})")


@dataclass
class CascadeConfig:
    """Terms on the replaced CLIP itself: all MLPs replaced at once, gradients through the whole stream. On by default;
    `stream: 0, embedding: 0` turns it off.

    Args:
        stream: weight of the normalised error of the residual stream after every block, in units of the variance of the
            layer's MLP output: later layers learn to make up for the errors of earlier ones; 0 turns it off.
        embedding: weight of 1 - cosine between the original and the replaced image embedding; 0 turns it off.
        reconstruction: weight of the normalised error between what the replaced MLPs add and the clean MLP outputs, on
            the reconstruction's scale; 0 turns it off.
        images: images of a batch that it is computed on, at most: its gradients are noisy, half of them cost half the
            time and a part of the gain.
        start: share of the run (of `trainer.max_steps`) after which it begins.
        warmup: share of the run over which the weights then rise linearly from 0. At full weight at once the gradients
            are several times as large as the second moments that Adam has gathered, and the first steps throw the
            transcoder back.
    """

    stream: float = 0.5
    embedding: float = 1.0
    reconstruction: float = 0.0
    images: int = 64
    start: float = 0.25
    warmup: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, "loss.cascade")

    @property
    def is_on(self) -> bool:
        return max(self.stream, self.embedding, self.reconstruction) > 0

    def strength(self, step: int, max_steps: int) -> float:
        """Share of their weights that the terms have at an optimizer step (from 0 on) of a run of `max_steps`.

        A run without a length (-1) has neither start nor warm-up.
        """
        steps = max(max_steps, 0)
        since = step - self.start * steps
        if since < 0 or not self.is_on:
            return 0.0
        warmup = self.warmup * steps
        return min(1.0, (since + 1) / warmup) if warmup > 0 else 1.0


@dataclass
class LossConfig:
    """Coefficients and warm-up of each part of the loss.

    Args:
        layer_weights: one weight a target layer for the reconstruction, rescaled to mean 1; null weighs all alike.
        l1: L1 penalty on code x decoder norm.
        tanh: tanh penalty on code x decoder norm.
        pre_activation: penalty on pre-activations below the threshold.
        auxk: auxiliary reconstruction from dead features.
        cascade: terms on the CLIP whose MLPs are all replaced.
    """

    layer_weights: list[float] | None = None
    l1: L1Config = field(default_factory=L1Config)
    tanh: TanhConfig = field(default_factory=TanhConfig)
    pre_activation: PreActivationConfig = field(default_factory=PreActivationConfig)
    auxk: AuxKConfig = field(default_factory=AuxKConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)

    def __post_init__(self) -> None:
        check_fields(self, "loss")
        cascade = self.cascade
        if (
            min(cascade.stream, cascade.embedding, cascade.reconstruction) < 0
            or cascade.images < 1
            or not 0 <= cascade.start <= 1
            or not 0 <= cascade.warmup <= 1
        ):
            raise UserError(
                "loss.cascade: stream, embedding and reconstruction must not be negative, images at least 1, start and "
                f"warmup in [0, 1], got {cascade}"
            )
        if self.auxk.token_fraction is not None and not 0 < self.auxk.token_fraction <= 1:
            raise UserError(f"loss.auxk.token_fraction must lie in (0, 1] or be null, got {self.auxk.token_fraction}")
        if self.auxk.k is not None and self.auxk.k < 1:
            raise UserError(f"loss.auxk.k must be at least 1 or null, got {self.auxk.k}")

    def parts(self) -> dict[str, Penalty]:
        """The parts that have a coefficient which rises over a warm-up, by name."""
        return {"l1": self.l1, "tanh": self.tanh, "pre_activation": self.pre_activation, "auxk": self.auxk}

    def never_reached(self, max_steps: int) -> list[str]:
        """What to tell of warm-ups that are longer than the run, whose coefficients are never reached.

        Raises:
            UserError: a warm-up is a share of a run whose length is not known.
        """
        shares = [name for name, part in self.parts().items() if part.coefficient and part.warmup_fraction]
        if shares and max_steps <= 0:
            raise UserError(
                f"model.loss.{shares[0]}.warmup_fraction needs the length of the run: set trainer.max_steps, or give "
                "warmup_steps"
            )
        return [
            f"model.loss.{name}.warmup_steps ({part.warmup_steps}) exceeds trainer.max_steps ({max_steps}): at the end "
            f"its coefficient is {part.coefficient * max_steps / part.warmup_steps:.2g} in the place of "
            f"{part.coefficient:g}"
            for name, part in self.parts().items()
            if part.coefficient and not part.warmup_fraction and 0 < max_steps < part.warmup_steps
        ]


class _SquaredErrors(torch.autograd.Function):
    """`sum over tokens of ||y_hat - y||^2` a layer, in one pass each way over tensors as large as the activations."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, y_hat: Tensor) -> Tensor:
        error = y_hat - y
        ctx.save_for_backward(error)
        # a token's norm first: one long sum in fp32 would lose digits
        norms: Tensor = torch.linalg.vector_norm(error, dim=2)
        return norms.square().sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (error,) = ctx.saved_tensors
        d_y_hat = error * (2 * grads[0])[:, None, None]
        return (-d_y_hat if ctx.needs_input_grad[0] else None), (d_y_hat if ctx.needs_input_grad[1] else None)


def normalized_error(y: Tensor, y_hat: Tensor, variance: Tensor) -> Tensor:
    """`(layers,)`: mean over tokens of `||y - y_hat||^2 / variance`, in fp32 or better: the FVU of a layer."""
    error: Tensor = _SquaredErrors.apply(y.to(y_hat.dtype), y_hat) / max(y.shape[1], 1)
    return error / variance.to(error)


def reconstruction_loss(y: Tensor, y_hat: Tensor, variance: Tensor, layer_weights: Sequence[float] | None) -> Tensor:
    """Mean over layers of the normalised squared error.

    Args:
        y: `(layers, tokens, d_model)` targets.
        y_hat: the same shape.
        variance: `(layers,)` total variance of y.
        layer_weights: one weight a layer, rescaled to mean 1.

    Raises:
        UserError: the number of weights is not the number of layers, or they sum to nothing.
    """
    errors = normalized_error(y, y_hat, variance)
    if layer_weights is None:
        return errors.mean()
    weights = errors.new_tensor(list(layer_weights))
    if weights.numel() != errors.numel() or not bool(weights.sum() > 0):
        raise UserError(f"loss.layer_weights needs {errors.numel()} weights with a positive sum, got {layer_weights}")
    return (errors * weights / weights.mean()).mean()


def _weighed_codes(codes: Codes, norms: Tensor) -> list[Tensor]:
    """`|z| * decoder norm` of every held code, one tensor a layer (pairs, or dense)."""
    out = []
    for layer, values in enumerate(codes.layer_values):
        if codes.is_dense(layer):
            out.append(values.abs() * norms[layer])
        else:
            out.append(values.abs() * norms[layer][codes.layer(layer)[0].features])
    return out


def _mean_of_sums(layers: Sequence[Tensor], n_tokens: int) -> Tensor:
    return torch.stack([v.sum() for v in layers]).mean() / max(n_tokens, 1)


def l1_penalty(codes: Codes, norms: Tensor) -> Tensor:
    """L1 of code x decoder norm, see `L1Config`; `norms` is `(layers, F)`."""
    return _mean_of_sums(_weighed_codes(codes, norms), codes.n_tokens)


def tanh_penalty(codes: Codes, norms: Tensor, c: float) -> Tensor:
    """Tanh of c x code x decoder norm, see `TanhConfig`; `norms` is `(layers, F)`."""
    return _mean_of_sums([torch.tanh(c * v) for v in _weighed_codes(codes, norms)], codes.n_tokens)


def pre_activation_penalty(pre: Sequence[Tensor], thresholds: Tensor | float, norms: Tensor) -> Tensor:
    """Depth of pre-activations below the threshold x decoder norm, see `PreActivationConfig`.

    Args:
        pre: one `(tokens, F)` a layer.
        thresholds: `(layers, F)` or a number.
        norms: `(layers, F)`.
    """
    layers = []
    for layer, values in enumerate(pre):
        threshold = thresholds[layer] if isinstance(thresholds, Tensor) else thresholds
        layers.append(torch.relu(threshold - values) * norms[layer])
    return _mean_of_sums(layers, pre[0].shape[0])


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


def _warmed(part: Penalty, step: int, max_steps: int) -> float:
    steps = part.warmup_steps or part.warmup_fraction * max(max_steps, 0)
    return part.coefficient * min(1.0, (step + 1) / steps) if steps > 0 else part.coefficient


def loss_parts(
    config: LossConfig,
    clt: CrossLayerTranscoder,
    y: Tensor,
    out: CLTOutput,
    step: int,
    auxiliary_tokens: Tensor | None = None,
    max_steps: int = 0,
) -> dict[str, Tensor]:
    """All parts of the loss that are on; their sum is the loss.

    Args:
        config: coefficients.
        clt: the transcoder (variances, decoder norms, thresholds).
        y: `(layers, tokens, d_model)` targets.
        out: the transcoder's output for these tokens.
        step: optimizer step, for the warm-up.
        auxiliary_tokens: `(auxiliary tokens,)` which tokens `out.auxiliary` is for.
        max_steps: optimizer steps of the whole run, for warm-ups that are a share of it.

    Returns:
        scalar tensors by part: `reconstruction`, `l1`, `tanh`, `pre_activation`, `auxk`.
    """
    parts = {"reconstruction": reconstruction_loss(y, out.y_hat, clt.y_var, config.layer_weights)}
    if config.l1.coefficient or config.tanh.coefficient or config.pre_activation.coefficient:
        norms = clt.decoder_norms()
    if config.l1.coefficient:
        weight = _warmed(config.l1, step, max_steps)
        parts["l1"] = weight * clt.sum_over_shards(l1_penalty(out.codes, norms))
    if config.tanh.coefficient:
        weight = _warmed(config.tanh, step, max_steps)
        parts["tanh"] = weight * clt.sum_over_shards(tanh_penalty(out.codes, norms, config.tanh.c))
    if config.pre_activation.coefficient:
        assert out.pre is not None, "the forward was not asked for pre-activations"
        weight = _warmed(config.pre_activation, step, max_steps)
        thresholds = clt.activation.threshold if isinstance(clt.activation, JumpReLU) else 0.0
        penalty = pre_activation_penalty(out.pre, thresholds, norms)
        parts["pre_activation"] = weight * clt.sum_over_shards(penalty)
    if out.auxiliary is not None:
        assert auxiliary_tokens is not None
        weight = _warmed(config.auxk, step, max_steps)
        chosen = auxiliary_tokens
        loss = auxk_loss(y[:, chosen], out.y_hat[:, chosen], out.auxiliary, clt.y_var)
        parts["auxk"] = weight * loss
    return parts
