"""COCO 2017 (Lin et al. 2014): scenes with 80 categories, several an image, and captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clt_lightning.data.sets.base import WebImages


class COCO(WebImages):
    """COCO 2017 from the tars that the `shard` command makes of the official archives.

    `label` is the category with the largest area in the image (-1 for images without annotations: they are trained on
    and stay out of accuracy), `multi_hot` tells all 80 categories, `captions` the sentences. Tars of captions alone
    (`wds_mscoco_captions`) can be read too, without labels.

    Make them with `python -m clt_lightning shard coco --source <folder of the archives> --output data/coco`.

    Args:
        root: Folder of the tars.
        **kwargs: As in `WebImages`.
    """

    set_name = "coco"
    shard_hint = (
        "Make the tars with: python -m clt_lightning shard coco --source <folder with train2017.zip, val2017.zip and "
        "annotations_trainval2017.zip> --output {root}"
    )
    default_classnames = "coco"
    default_templates = "templates_imagenet7"

    def __init__(self, root: str | Path = "data/coco", **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
