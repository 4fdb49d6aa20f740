"""A class logit as a sum: what embedding, attention, each layer's features, biases and errors add to it, directly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis.last_residual import LastResidual, terms_at_cls
from clt_lightning.analysis.tower import Observation
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.transcoder import Codes, CrossLayerTranscoder


@dataclass(frozen=True)
class Decomposition:
    """Direct contributions to one class logit of one image, in logit units.

    The last [CLS] residual is a sum of what was added to it; the last LayerNorm (its scale frozen at the image's own
    value), the projection and the division by the embedding's norm are linear then, so the logit is the sum of the
    terms. What a term does through later layers (other MLPs and attention reading it) is counted there, not here.

    Attributes:
        logit: the model's own.
        embedding: the [CLS] and positional embeddings (after `ln_pre`).
        attention: `(L,)` what each block's attention added at [CLS].
        features: `(L, L)` `[source, target]`: what the features of a source layer wrote into a target layer's MLP
            output.
        bias: `(L,)` decoder biases.
        skip: `(L,)` the transcoder's linear path.
        error: `(L,)` true MLP output minus reconstruction; 0 where the MLP is replaced.
        norm_bias: the last LayerNorm's own bias.
    """

    logit: float
    embedding: float
    attention: Float[Tensor, " layers"]
    features: Float[Tensor, "layers targets"]
    bias: Float[Tensor, " layers"]
    skip: Float[Tensor, " layers"]
    error: Float[Tensor, " layers"]
    norm_bias: float

    @property
    def sum(self) -> float:
        """The sum of all terms: the logit, to 1e-4 in fp32."""
        parts = (self.attention, self.features, self.bias, self.skip, self.error)
        return self.embedding + self.norm_bias + float(sum(part.double().sum() for part in parts))

    def to_json(self) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        return {
            "logit": self.logit,
            "sum": self.sum,
            "embedding": self.embedding,
            "attention": self.attention.tolist(),
            "features": self.features.tolist(),
            "bias": self.bias.tolist(),
            "skip": self.skip.tolist(),
            "error": self.error.tolist(),
            "norm_bias": self.norm_bias,
        }


@torch.no_grad()
def decompose(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    seen: Observation,
    codes: Codes,
    added: Float[Tensor, "layers d_model"],
    text: Float[Tensor, " embed_dim"],
    replaced: bool,
) -> Decomposition:
    """Decompose one class logit of one image.

    Args:
        clip: the backbone.
        clt: the transcoder.
        seen: the forward to explain (of the untouched model, or with all MLPs replaced), of one image.
        codes: the codes in that forward.
        added: `(L, d_model)` what each MLP branch added at [CLS] in it.
        text: `(embed_dim,)` the class's text embedding.
        replaced: whether `added` is the transcoder's reconstruction; the error is 0 by definition then.

    Raises:
        UserError: a backbone whose embedding is not read from [CLS] through one LayerNorm.
    """
    L = clt.n_layers
    residual = LastResidual.of(clip, seen, added[:, None])
    directions, constants = residual.reading(text[:, None])

    def read(vectors: Tensor) -> Tensor:
        result: Tensor = (vectors @ directions[0, 0]).cpu()
        return result

    features = torch.zeros(L, L, dtype=torch.float64)
    skip, bias = torch.zeros(L, dtype=torch.float64), torch.zeros(L, dtype=torch.float64)
    for target, terms, skipped, constant in terms_at_cls(clt, seen, codes):
        features[: target + 1, target] = read(terms[:, 0])
        skip[target], bias[target] = read(skipped[0]), read(constant[0])
    whole = read(residual.y[:, 0])
    error = torch.zeros(L, dtype=torch.float64) if replaced else whole - features.sum(0) - bias - skip
    logit = clip.logit_scale * float(seen.embeddings[0].double() @ text.double().to(seen.embeddings.device))
    return Decomposition(
        logit,
        float(read(residual.embedding[0])),
        read(residual.attention[:, 0]),
        features,
        bias,
        skip,
        error,
        float(constants),
    )
