"""All parts of the loss on a batch's tokens."""

from __future__ import annotations

from torch import Tensor

from clt_lightning.training.losses.auxk import auxk_loss
from clt_lightning.training.losses.config import LossConfig
from clt_lightning.training.losses.l1 import l1_penalty
from clt_lightning.training.losses.pre_activation import pre_activation_penalty
from clt_lightning.training.losses.reconstruction import reconstruction_loss
from clt_lightning.training.losses.tanh import tanh_penalty
from clt_lightning.training.losses.warmup import warmed
from clt_lightning.transcoder.activations import JumpReLU
from clt_lightning.transcoder.clt import CrossLayerTranscoder
from clt_lightning.transcoder.requests import CLTOutput


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
        weight = warmed(config.l1, step, max_steps)
        parts["l1"] = weight * clt.sum_over_shards(l1_penalty(out.codes, norms))
    if config.tanh.coefficient:
        weight = warmed(config.tanh, step, max_steps)
        parts["tanh"] = weight * clt.sum_over_shards(tanh_penalty(out.codes, norms, config.tanh.c))
    if config.pre_activation.coefficient:
        assert out.pre is not None, "the forward was not asked for pre-activations"
        weight = warmed(config.pre_activation, step, max_steps)
        thresholds = clt.activation.threshold if isinstance(clt.activation, JumpReLU) else 0.0
        penalty = pre_activation_penalty(out.pre, thresholds, norms)
        parts["pre_activation"] = weight * clt.sum_over_shards(penalty)
    if out.auxiliary is not None:
        assert auxiliary_tokens is not None
        weight = warmed(config.auxk, step, max_steps)
        chosen = auxiliary_tokens
        loss = auxk_loss(y[:, chosen], out.y_hat[:, chosen], out.auxiliary, clt.y_var)
        parts["auxk"] = weight * loss
    return parts
