"""ImageNet-100: a class list's share of ImageNet-1k (Russakovsky et al. 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.data.feed.splits import Selection
from clt_lightning.data.lists import imagenet1k
from clt_lightning.data.sets.base import WebImages
from clt_lightning.data.sets.imagenet100.classlist import load_class_list


class ImageNet100(WebImages):
    """100 classes of ImageNet, from tars of those classes alone or from `wds_imagenet1k`'s, with no new tars.

    Whether the root holds all 1000 classes is seen from its `classnames.txt`; then the samples of the class list are
    picked by their labels and re-indexed. Labels follow the sorted WordNet ids. Two lists of 100 classes circulate that
    share 8: the list's name and hash are part of the run's record.

    Make own tars with `python -m clt_lightning shard imagenet100 --source <ImageNet> --output data/imagenet100`.

    Args:
        root: Folder of the tars.
        class_list: `cmc` (Contrastive Multiview Coding's) or a file with one WordNet id a line.
        **kwargs: As in `WebImages`.
    """

    set_name = "imagenet100"
    shard_hint = (
        "Make the tars with: python -m clt_lightning shard imagenet100 --source <folder with ILSVRC2012_img_train.tar, "
        "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, or folders by WordNet id> --output {root}"
    )
    default_templates = "templates_imagenet80"

    def __init__(self, root: str | Path = "data/imagenet100", class_list: str | Path = "cmc", **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        self.class_list = load_class_list(str(class_list))
        self._picks = False

    def _read_names(self) -> None:
        if self._names_read:
            return
        super()._read_names()
        stored = self._from_root("classnames.txt")
        self._picks = stored is not None and len(stored) == len(imagenet1k())
        if self._asked_classnames is None:
            recorded = self._from_root("wnids.txt")
            if not self._picks and recorded is not None and tuple(recorded) != self.class_list.wnids:
                raise UserError(
                    f"the tars in {self.root!r} were made from another class list than {self.class_list.name!r} (see "
                    "its wnids.txt): set data.init_args.class_list to that list's file, or make the tars again"
                )
            if self._picks or stored is None:
                self.classnames = list(self.class_list.names)
        if self.n_classes != len(self.class_list.names):
            raise UserError(
                f"class list {self.class_list.name!r} has {len(self.class_list.names)} classes, but "
                f"{super()._names_from()} lists {self.n_classes}"
            )

    def _selection(self) -> Selection | None:
        if not self._picks:
            return None
        return Selection(self.class_list.from_imagenet1k(), len(imagenet1k()), f"{self.root}/classnames.txt")

    def _names_from(self) -> str:
        return f"class list {self.class_list.name!r}" if self._picks else super()._names_from()

    def describe(self) -> dict[str, Any]:
        """As in `WebImages`, with the class list's name and hash."""
        listed = {"class_list": self.class_list.name, "class_list_sha256": self.class_list.sha256}
        return super().describe() | listed | {"picked_from_imagenet1k": self._picks}
