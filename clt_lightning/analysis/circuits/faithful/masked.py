"""The forward of a circuit: what is in it reads the running stream anew, what is not stands at its baseline."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.faithful.baseline import Baseline
from clt_lightning.analysis.circuits.faithful.dictionary import Dictionary, Observed
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError

#: Codes held at once
_NUMBERS = 24_000_000


@torch.no_grad()
def masked_embeddings(
    clip: Backbone, dictionary: Dictionary, seen: Observed, baseline: Baseline, keep: Tensor, image: int = 0
) -> Tensor:
    """Embeddings of one image with units left out, each row of `keep` by itself.

    At each layer, in the order of the forward: codes are read from the running stream; those of units that are left out
    are set to the baseline; what they write takes the site's place, plus the untouched image's own error of the layer
    (a *leaf*: it is held, not read anew), or the baseline's, where the error is left out. With everything kept this is
    the untouched forward.

    Args:
        clip: the backbone.
        dictionary: the units.
        seen: the untouched model (`observe_units`).
        baseline: of the same units.
        keep: `(variants, layers, n_features + 1)` bool, the layer's error last; or
            `(variants, layers, positions, n_features + 1)`.
        image: which of the observed images.

    Returns:
        `(variants, embed_dim)`, unit length.

    Raises:
        UserError: a mask of another shape.
    """
    L, F, P = len(dictionary.blocks), dictionary.n_features, seen.entry.shape[1]
    if tuple(keep.shape[1:]) not in ((L, F + 1), (L, P, F + 1)):
        raise UserError(f"keep must be (variants, {L}, {F + 1}) or (variants, {L}, {P}, {F + 1}), got {keep.shape}")
    keep = keep if keep.ndim == 4 else keep[:, :, None]
    step = max(1, _NUMBERS // (P * (F + 1) * (1 if dictionary.read == dictionary.write else L)))
    found = [_run(clip, dictionary, seen, baseline, some, image) for some in keep.split(step)]
    return torch.cat(found)


def _run(
    clip: Backbone, dictionary: Dictionary, seen: Observed, baseline: Baseline, keep: Tensor, image: int
) -> Tensor:
    variants, P = len(keep), seen.entry.shape[1]
    rows = slice(image * P, (image + 1) * P)
    like = seen.errors[0]
    kept, usual_codes, usual_errors = keep.to(like.device), baseline.codes.to(like), baseline.errors.to(like)
    codes: list[Tensor] = []

    def put(block: int, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        layer = dictionary.blocks.index(block)
        read = (compute() if dictionary.read == dictionary.write else x).to(like)
        flat = read.reshape(-1, read.shape[-1])
        own = dictionary.encode(layer, flat).unflatten(0, (variants, P))
        mask = kept[:, layer]
        codes.append(torch.where(mask[..., :-1], own, usual_codes[layer]).flatten(0, 1))
        error = torch.where(mask[..., -1:], seen.errors[layer][rows], usual_errors[layer])
        y = dictionary.rest(layer, flat) + dictionary.written(layer, codes, flat)
        result: Tensor = (y.unflatten(0, (variants, P)) + error).to(x.dtype)
        return result

    stream = seen.entry[image].expand(variants, -1, -1)
    with clip.override(dictionary.write, put, dictionary.blocks):
        return clip.run_from(dictionary.blocks[0], stream)
