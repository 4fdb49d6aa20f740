"""The last [CLS] residual as a sum, and how class logits read it: the one place behind every logit that is split up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.analysis.tower import Observation
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import Codes, CrossLayerTranscoder


def at_cls(tokens: Tensor, n_images: int) -> Tensor:
    """`(..., images, d)` the [CLS] tokens out of `(..., tokens, d)`."""
    found: Tensor = tokens.unflatten(-2, (n_images, -1))[..., 0, :]
    return found


@dataclass(frozen=True)
class LastResidual:
    """What was added to the last [CLS] residual of some images, float64.

    The residual is the sum of these parts. The last LayerNorm (its scale frozen at the image's own value), the
    projection and the division by the embedding's norm are linear then, so that a logit is the sum of what it reads of
    each part, and of what the biases add.

    Attributes:
        clip: a backbone that reads its embedding from [CLS].
        embedding: `(images, d_model)` the [CLS] and positional embeddings (after `ln_pre`).
        attention: `(L, images, d_model)` what each block's attention added.
        y: `(L, images, d_model)` what each block's MLP added.
    """

    clip: Backbone
    embedding: Tensor
    attention: Tensor
    y: Tensor

    @classmethod
    def of(cls, clip: Backbone, seen: Observation, y: Tensor | None = None) -> LastResidual:
        """Of a forward, with all attention and the first entry kept.

        Args:
            clip: the backbone.
            seen: the forward.
            y: `(L, images, d_model)` what the MLPs added at [CLS], where that is not `seen.y`.

        Raises:
            UserError: a backbone whose embedding is not read from [CLS] through one LayerNorm.
        """
        if clip.readout() is None:
            raise UserError(
                f"'{clip.name}' does not read its embedding from [CLS]: its logits cannot be split up so far"
            )
        own = at_cls(seen.y, seen.n_images) if y is None else y
        attention = torch.stack([part.double() for part in seen.attention])
        return cls(clip, seen.streams[0][:, 0].double(), attention, own.double())

    @property
    def whole(self) -> Tensor:
        """`(images, d_model)`."""
        return self.embedding + self.attention.sum(0) + self.y.sum(0)

    def scales(self) -> tuple[Tensor, Tensor]:
        """What logits are multiplied by: the last LayerNorm's scale times the factor, and the factor alone.

        The factor is `logit_scale` over the embedding's norm; `(images,)` each.
        """
        readout = self.clip.readout()
        assert readout is not None
        factor = self.clip.logit_scale / readout.embed(self.whole).norm(dim=-1)
        return readout.scale(self.whole) * factor, factor

    def reading(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """How logits read the residual.

        Args:
            texts: `(embed_dim, n)` the same for all images, or `(images, embed_dim, n)`.

        Returns:
            `(images, n, d_model)` what one unit of a direction adds to each logit, and `(images, n)` what the last
            LayerNorm's and the projection's biases add.
        """
        readout = self.clip.readout()
        assert readout is not None
        scale, factor = self.scales()
        flat = texts.to(scale.device).movedim(-2, 0).flatten(1)
        images = len(scale) if texts.ndim == 3 else 1
        directions = readout.directions(flat).T.unflatten(0, (images, -1))
        constants = readout.constants(flat).unflatten(0, (images, -1))
        return directions * scale[:, None, None], constants * factor[:, None]


def terms_at_cls(
    clt: CrossLayerTranscoder, seen: Observation, codes: Codes
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """What a reconstruction is made of at [CLS], target layer by target layer, float64.

    Args:
        clt: the transcoder, in the place of all MLPs.
        seen: a forward.
        codes: the codes in it.

    Yields:
        the target; `(target + 1, images, d_model)` what the features of each source layer write; the linear skip and
        the decoder bias, `(images, d_model)` each.
    """
    n = seen.n_images
    is_cls = torch.arange(codes.n_tokens, device=codes.device) % (codes.n_tokens // n) == 0
    sources = [codes.select_tokens(is_cls).slice(layer) for layer in range(clt.n_layers)]
    x = at_cls(seen.x, n)
    for target in range(clt.n_layers):
        terms = clt.layer_terms(sources[: target + 1], target).detach().double()
        bias = clt.bias(target).detach().double().expand(n, -1)
        yield target, terms, clt.skip_term(x[target], target).detach().double(), bias
