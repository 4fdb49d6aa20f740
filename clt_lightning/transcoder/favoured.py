"""[CLS] among many patches: its pre-activations may count more where codes are chosen.

Where tokens share a budget, an image's one [CLS] token has few codes: what an early MLP writes there is small beside
what it writes to patches, yet the embedding is read there. With a weight, a [CLS] token's pre-activations are
multiplied by it while codes are chosen, and by nothing else: its threshold is that much lower. Of 50 to 200 tokens one
has more codes, so that the budget is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError


@dataclass(frozen=True)
class Favoured:
    """Tokens whose pre-activations are multiplied while codes are chosen.

    Attributes:
        rows: `(n,)` int64, which tokens, without repeats.
        weight: by what.
    """

    rows: Tensor
    weight: float

    @contextmanager
    def applied(self, pre: Tensor) -> Iterator[Tensor]:
        """While active, `pre (tokens, F)` is weighted, in place; afterwards it holds its own bits again."""
        own = pre.index_select(0, self.rows)
        pre.index_copy_(0, self.rows, own * self.weight)
        try:
            yield pre
        finally:
            pre.index_copy_(0, self.rows, own)

    def weights(self, like: Tensor) -> Tensor:
        """`(tokens,)`: the weight of each row of `like`."""
        return like.new_ones(len(like)).index_fill_(0, self.rows, self.weight)


def cls_rows(n_tokens: int, n_positions: int, device: torch.device) -> Tensor:
    """The [CLS] tokens among those of whole images, image-major, [CLS] first.

    Raises:
        UserError: the tokens are not those of whole images.
    """
    if n_tokens % n_positions:
        raise UserError(
            f"{n_tokens} tokens are not whole images of {n_positions}: this transcoder weights [CLS] "
            "(cls_weight), so say which tokens are: cls=tensor of their indices"
        )
    return torch.arange(0, n_tokens, n_positions, device=device)
