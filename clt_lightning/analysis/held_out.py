"""What is chosen on some images is measured on others."""

from __future__ import annotations

from typing import Any

from clt_lightning.core.errors import UserError


def refuse_shared(data: Any, measured: str = "test", chosen: str = "val") -> None:
    """Refuse data whose split to choose on has tars of the split that is measured, as where one stands in for another.

    Args:
        data: the data module, set up; one that knows nothing of tars is let through.
        measured: the split that is measured.
        chosen: the split on which strengths or sizes are chosen.

    Raises:
        UserError: a tar is in both.
    """
    split = getattr(data, "split", None)
    if split is None:
        return
    tars = [{shard.file.url for shard in found.shards} if found else set() for found in map(split, (chosen, measured))]
    both = sorted(tars[0] & tars[1])
    if both:
        raise UserError(
            f"{chosen} and {measured} are the same images here ({both[0]}{' …' if len(both) > 1 else ''}): what is "
            f"chosen on {chosen} would be chosen on what it is measured on. Hold a part of the training images out: "
            "`shard` does (--val-fraction), or name some of the tars with data.init_args.train and "
            "data.init_args.val"
        )
