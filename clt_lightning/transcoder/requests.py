"""What a training forward is asked for, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from clt_lightning.transcoder.codes import Codes
from clt_lightning.transcoder.pairs import Pairs


@dataclass
class CLTOutput:
    """What the training forward gives.

    Attributes:
        y_hat: `(layers, tokens, d_model)` reconstruction of the MLP outputs.
        codes: the codes of all layers, sparse inside, differentiable.
        pre: one `(tokens, F)` tensor of pre-activations a layer, where asked for.
        auxiliary: `(layers, auxiliary tokens, d_model)` what the dead features alone would add, where asked for.
        repeated: scalar tensor, the share of (layer, token) rows that a low-precision product left open and that were
            computed again in fp32; None where no product was in low precision.
    """

    y_hat: Float[Tensor, "layers tokens d_out"]
    codes: Codes
    pre: list[Float[Tensor, "tokens features"]] | None = None
    auxiliary: Float[Tensor, "layers auxiliary_tokens d_out"] | None = None
    repeated: Num[Tensor, ""] | None = None


@dataclass
class AuxiliaryRequest:
    """Asks the forward for a second reconstruction, from dead features alone (AuxK; Gao et al. 2024).

    Attributes:
        dead: `(layers, F)` bool.
        k: number of dead features a token may use in a layer.
        tokens: `(auxiliary tokens,)` int64, the tokens to do it for.
        counts: number of dead features per layer, where known: the device then need not be waited for.
    """

    dead: Bool[Tensor, "layers features"]
    k: int
    tokens: Int[Tensor, " auxiliary_tokens"]
    counts: tuple[int, ...] | None = None

    def count(self, layer: int) -> int:
        """Number of dead features of a layer."""
        return int(self.dead[layer].sum()) if self.counts is None else self.counts[layer]


@dataclass
class EncodedLayer:
    """What the encoder of one layer says.

    Attributes:
        pairs: the active pairs; None for a dense layer.
        values: `(pairs,)` codes, or `(tokens, F)` of a dense layer.
        pre: `(tokens, F)` pre-activations with gradients, where asked for.
        dead: pairs and codes of the dead features on the auxiliary tokens, where asked for.
        repeated: scalar tensor, the number of tokens that a low-precision product left open; None without one.
    """

    pairs: Pairs | None
    values: Tensor
    pre: Tensor | None = None
    dead: tuple[Pairs, Tensor] | None = None
    repeated: Tensor | None = None
