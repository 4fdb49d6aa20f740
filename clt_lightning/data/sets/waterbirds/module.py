"""Waterbirds (Sagawa et al. 2020): birds cut out and put on land or water, which mostly is their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clt_lightning.data.sets.base import WebImages


class Waterbirds(WebImages):
    """Waterbirds, or any set that `shard waterbirds` has made of a table: batches have the `group` of each image.

    Groups are numbered `label * attributes + attribute`, as the table's authors do: landbirds on land and on water,
    waterbirds on land and on water; `groupnames` names them.

    Make the tars with `python -m clt_lightning shard waterbirds --source waterbird_complete95_forest2water2 --output
    data/waterbirds`.

    Args:
        root: Folder of the tars.
        **kwargs: As in `WebImages`.
    """

    set_name = "waterbirds"
    shard_hint = (
        "Make the tars with: python -m clt_lightning shard waterbirds --source <folder with metadata.csv and the "
        "images that it names> --output {root}"
    )

    def __init__(self, root: str | Path = "data/waterbirds", **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
