"""Some features' codes."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from clt_lightning.transcoder.codes import Codes


def columns(codes: Codes, features: Sequence[int]) -> Float[Tensor, "tokens features"]:
    """`(tokens, len(features))`: some features' codes, from single-layer codes, without the dense matrix."""
    if codes.is_dense(0):
        return codes.layer_values[0][:, list(features)]
    pairs, values = codes.layer(0)
    found = values.new_zeros(codes.n_tokens, len(features))
    for column, feature in enumerate(features):
        chosen = pairs.features == feature
        found[:, column].index_add_(0, pairs.tokens[chosen], values[chosen])
    return found
