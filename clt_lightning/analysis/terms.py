"""All class logits of images as sums: what each layer's attention, features, skip, bias and error add, directly."""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.analysis.last_residual import LastResidual, terms_at_cls
from clt_lightning.analysis.tower import Observation
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

#: Kinds of terms that every layer has, in the order of the rows
BY_LAYER = ("attention", "features", "skip", "bias", "error")
Row = tuple[str, int | None]


def term_rows(n_layers: int) -> list[Row]:
    """What the rows of `logit_terms` are: a kind, and its layer (of features: the layer that they are read from)."""
    return [("embedding", None), *((kind, n) for kind in BY_LAYER for n in range(n_layers)), ("norm_bias", None)]


@torch.no_grad()
def logit_terms(
    clip: FrozenCLIP, clt: CrossLayerTranscoder, seen: Observation, codes: Codes, head: Tensor
) -> tuple[Tensor, Tensor]:
    """Direct contributions to every class logit, as in `Decomposition`, for many images and classes at once.

    Args:
        clip: a backbone that reads its embedding from [CLS].
        clt: the transcoder.
        seen: a forward of the images: of the untouched model, or with all MLPs replaced (its error is 0 then).
        codes: the codes in that forward.
        head: `(embed_dim, classes)`.

    Returns:
        `(images, rows, classes)` float64, rows as in `term_rows`: their sum is the logit; and
        `(images, classes, d_model)`: what one unit of a direction in the last [CLS] residual adds to each logit.
    """
    L = clt.n_layers
    residual = LastResidual.of(clip, seen)
    features = torch.zeros_like(residual.y)
    skip, bias, error = torch.zeros_like(features), torch.zeros_like(features), torch.zeros_like(features)
    for target, terms, skipped, constant in terms_at_cls(clt, seen, codes):
        features[: target + 1] += terms
        skip[target], bias[target] = skipped, constant
        error[target] = residual.y[target] - terms.sum(0) - skipped - constant
    vectors = torch.cat([residual.embedding[None], residual.attention, features, skip, bias, error])
    directions, constants = residual.reading(head)
    assert len(vectors) == 1 + len(BY_LAYER) * L
    return torch.cat([torch.einsum("rnd,ncd->nrc", vectors, directions), constants[:, None]], 1), directions
