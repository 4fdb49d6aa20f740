"""All class logits of images as sums: what each layer's attention, features, skip, bias and error add, directly."""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.analysis.effects.direct import read_out, read_out_scale
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
    L, n = clt.n_layers, seen.n_images
    positions = codes.n_tokens // n
    is_cls = torch.arange(codes.n_tokens, device=codes.device) % positions == 0
    sources = [codes.select_tokens(is_cls).slice(layer) for layer in range(L)]
    true_y = seen.y.unflatten(1, (n, positions))[:, :, 0].double()
    x = seen.x.unflatten(1, (n, positions))[:, :, 0]
    features = true_y.new_zeros(L, n, clt.d_model)
    skip, error = torch.zeros_like(features), torch.zeros_like(features)
    bias = clt.b_dec.detach().double()[:, None].expand(-1, n, -1)
    for target in range(L):
        terms = clt.layer_terms(sources[: target + 1], target).double()
        features[: target + 1] += terms
        skip[target] = clt.skip_term(x[target], target).double()
        error[target] = true_y[target] - terms.sum(0) - skip[target] - bias[target]
    attention = torch.stack([part.double() for part in seen.attention])
    vectors = torch.cat([seen.streams[0][None, :, 0].double(), attention, features, skip, bias, error])
    scale, factor = read_out_scale(clip, seen)
    directions = read_out(clip, head)[None] * scale[:, None, None]
    visual = clip.model.visual
    own = visual.ln_post.bias.double()
    own = own if visual.proj is None else own @ visual.proj.double()
    norm_bias = factor[:, None] * (own @ head.double().to(own.device))
    return torch.cat([torch.einsum("rnd,ncd->nrc", vectors, directions), norm_bias[:, None]], 1), directions
