"""Token sets of a batch, as views."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.core.tokens import TOKEN_SETS, TokenLayout, check_token_sets, present

__all__ = ["TOKEN_SETS", "TokenLayout", "check_token_sets", "present", "select", "token_mask"]


def select(
    tensor: Shaped[Tensor, "layers tokens ..."], token_set: str, layout: TokenLayout
) -> Shaped[Tensor, "layers images positions ..."]:
    """One token set of a tensor whose second dimension runs over image-major tokens.

    Early [CLS] activations are nearly constant and look perfect for that reason: report the sets separately.

    Args:
        tensor: `(layers, images * positions, ...)`.
        token_set: `cls`, `register`, `patch` or `all`.
        layout: which positions are what.

    Returns:
        A view `(layers, images, positions of the set, ...)`; nothing is copied.

    Raises:
        UserError: on an unknown set, one that the backbone lacks, or if the tokens are not a whole number of images.
    """
    span, positions = layout.span(token_set), layout.n_positions
    if tensor.ndim < 2 or tensor.shape[1] % positions:
        raise UserError(
            f"token set {token_set!r}: a tensor of shape {tuple(tensor.shape)} does not hold whole images of "
            f"{positions} positions along its second dimension"
        )
    found: Tensor = tensor.unflatten(1, (tensor.shape[1] // positions, positions))[:, :, span]
    return found


def token_mask(
    token_set: str, layout: TokenLayout, n_tokens: int, device: torch.device | str = "cpu"
) -> Bool[Tensor, " tokens"]:
    """`(n_tokens,)` bool: which of the image-major tokens of whole images belong to a set.

    Raises:
        UserError: on an unknown set, or one that the backbone lacks.
    """
    span = layout.span(token_set)
    positions = torch.arange(n_tokens, device=device) % layout.n_positions
    found: Tensor = (positions >= span.start) & (positions < span.stop)
    return found
