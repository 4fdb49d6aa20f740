"""All terms of the loss on a batch's tokens."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from clt_lightning.training.losses.auxk import auxk_loss
from clt_lightning.training.losses.base import LossInputs
from clt_lightning.training.losses.config import LossConfig
from clt_lightning.training.losses.reconstruction import reconstruction_loss
from clt_lightning.training.losses.warmup import warmed
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
    labels: Tensor | None = None,
    positions: Tensor | None = None,
    studies: Tensor | None = None,
) -> dict[str, Tensor]:
    """All terms of the loss that are on; their sum is the loss.

    Args:
        config: coefficients.
        clt: the transcoder (variances, decoder norms, thresholds).
        y: `(layers, tokens, d_model)` targets.
        out: the transcoder's output for these tokens.
        step: optimizer step, for the warm-up.
        auxiliary_tokens: `(auxiliary tokens,)` which tokens `out.auxiliary` is for.
        max_steps: optimizer steps of the whole run, for warm-ups that are a share of it.
        labels: `(tokens,)` the class of each token's image, where a term needs it.
        positions: `(tokens,)` each token's place among its image's, where a term needs it.
        studies: `(tokens,)` the data set of each token's image, where a term needs it.

    Returns:
        scalar tensors by term: `reconstruction`, `l1`, `tanh`, `pre_activation`, `auxk`, and the names of `extra`.
    """
    parts = {"reconstruction": reconstruction_loss(y, out.y_hat, clt.y_var, config.layer_weights)}
    given = LossInputs(clt, y, out, labels, positions, studies)
    for term in config.terms():
        asked = replace(given, allowed=frozenset(term.needs), term=term.name)
        value = term.value(asked)
        parts[term.name] = warmed(term, step, max_steps) * (clt.sum_over_shards(value) if term.sums_features else value)
    if out.auxiliary is not None:
        assert auxiliary_tokens is not None
        chosen = auxiliary_tokens
        loss = auxk_loss(y[:, chosen], out.y_hat[:, chosen], out.auxiliary, clt.y_var)
        parts["auxk"] = warmed(config.auxk, step, max_steps) * loss
    return parts
