"""Which images get pages of their own."""

from __future__ import annotations

from collections.abc import Sequence

from clt_lightning.core.errors import UserError


def spread(labels: Sequence[int], count: int) -> list[int]:
    """Images evenly over the classes, always the same ones.

    Args:
        labels: of all images; -1: none.
        count: how many at most.

    Returns:
        Their numbers, by label; images without a label only where all have none.
    """
    labelled = [i for i, label in enumerate(labels) if label >= 0] or list(range(len(labels)))
    ordered = sorted(labelled, key=lambda i: (labels[i], i))
    count = min(count, len(ordered))
    return [ordered[(2 * n + 1) * len(ordered) // (2 * count)] for n in range(count)]


def named(keys: Sequence[str], wanted: Sequence[str], option: str) -> list[int]:
    """The numbers of images that the user named.

    Args:
        keys: of all images.
        wanted: keys to find.
        option: the option they came with, for the message.

    Raises:
        UserError: a key that no image has.
    """
    place = {key: i for i, key in enumerate(keys)}
    for key in wanted:
        if key not in place:
            example = f", such as {keys[0]!r}" if keys else ""
            raise UserError(f"{option} {key!r}: no image of the report has this key (<shard>/<sample>{example})")
    return [place[key] for key in wanted]
