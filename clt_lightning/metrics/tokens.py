"""Token sets: the [CLS] token, the patches, or all tokens of a batch, as views."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from clt_lightning.core.errors import UserError

TOKEN_SETS = ("cls", "patch", "all")


def check_token_sets(names: Sequence[str], *, option: str = "token_sets") -> tuple[str, ...]:
    """Check a list of token sets from a config.

    Args:
        names: any of `cls`, `patch`, `all`; without repeats.
        option: the config key, for the message.

    Returns:
        The names as a tuple.

    Raises:
        UserError: on an unknown, repeated or missing name, or on a bare string.
    """
    if isinstance(names, str):
        raise UserError(f"{option} must be a list of token sets, such as [{names}], got the string {names!r}")
    wrong = [name for name in names if name not in TOKEN_SETS]
    if wrong or not names or len(set(names)) != len(names):
        raise UserError(f"{option}={list(names)}: expected one or more of {list(TOKEN_SETS)}, each at most once")
    return tuple(names)


def select(tensor: Tensor, token_set: str, n_positions: int) -> Tensor:
    """One token set of a tensor whose second dimension runs over image-major tokens.

    Early [CLS] activations are nearly constant and look perfect for that reason: report the sets separately.

    Args:
        tensor: `(layers, images * n_positions, ...)`; position 0 of every image is [CLS].
        token_set: `cls`, `patch` or `all`.
        n_positions: tokens per image.

    Returns:
        A view `(layers, images, positions of the set, ...)`; nothing is copied. `patch` is empty where an image has
        only its [CLS].

    Raises:
        UserError: on an unknown set, or if the tokens are not a whole number of images.
    """
    if token_set not in TOKEN_SETS:
        raise UserError(f"token set {token_set!r}: expected one of {list(TOKEN_SETS)}")
    if n_positions < 1 or tensor.ndim < 2 or tensor.shape[1] % n_positions:
        raise UserError(
            f"token set {token_set!r}: a tensor of shape {tuple(tensor.shape)} does not hold whole images of "
            f"{n_positions} positions along its second dimension"
        )
    images: Tensor = tensor.unflatten(1, (tensor.shape[1] // n_positions, n_positions))
    if token_set == "cls":
        return images[:, :, :1]
    return images[:, :, 1:] if token_set == "patch" else images
