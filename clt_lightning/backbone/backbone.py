"""The frozen backbone: any Vision Transformer, with windows into every site of every block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clt_lightning.backbone.classes import Classes
from clt_lightning.backbone.frozen import PRECISIONS, Precision, check_precision
from clt_lightning.backbone.reading import Reading
from clt_lightning.backbone.running import Images

if TYPE_CHECKING:
    from clt_lightning.backbone.head import BackboneWithSAE, Output

__all__ = ["PRECISIONS", "Backbone", "Images", "Precision", "check_precision"]


class Backbone(Reading, Classes):
    """A Vision Transformer that never changes: no gradients, eval mode for ever, its own precision.

    Its weights are kept out of everything that a parent module does with parameters: they appear in no `parameters()`,
    no `state_dict()`, no DDP bucket, and `.half()`, `.double()` or a precision plugin do not touch them. Device moves
    do.

    Args:
        family: the model in parts.
        name: what it is called.
        pretrained: where its weights come from; None for random ones.
        precision: the type of its weights.

    Attributes:
        family: the model in parts.
        n_layers: residual blocks.
        d_model: width of the residual stream.
        tokens: which positions are [CLS], registers and patches.
        n_positions: tokens of an image.
        n_prefix: tokens before the patches; `n_registers`: those that are neither [CLS] nor patches; `has_cls`.
        grid: patches as (rows, columns).
        image_size: side of the square input in pixels.
        embed_dim: size of the pooled embedding.
        preprocess: evaluation transform, PIL image -> `(3, image_size, image_size)` float32 tensor.
        mean: per channel, what `preprocess` subtracts; `std`: what it divides by.
        blocks: the residual blocks; `batch_first`: whether they take `(images, positions, d_model)`, not
            `(positions, images, d_model)`.
        logit_scale: the factor on cosine similarities in `logits`, 100 as in CLIP's zero-shot protocol.
        has_text: whether it embeds texts as well.
    """

    def with_sae(self, sae: Any, output: Output = "reconstruction", tokens: str = "all") -> BackboneWithSAE:
        """A module from images to what a sparse autoencoder makes of them (`head.BackboneWithSAE`).

        Args:
            sae: a `CrossLayerTranscoder` of topology `sae` at one site.
            output: `reconstruction`, `(images, tokens, d)`, or `codes`, `(images, tokens, n_features)`.
            tokens: `all`, `cls`, `register` or `patch`: which tokens.
        """
        from clt_lightning.backbone.head import BackboneWithSAE

        return BackboneWithSAE(self, sae, output, tokens)
