"""Class lists that pick classes of ImageNet-1k: which they are, in which order, and what they are called."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import numbered_lines, read_text
from clt_lightning.data.lists import imagenet1k, lines

SHIPPED = {"cmc": "imagenet100_cmc"}


@dataclass(frozen=True)
class ClassList:
    """A selection of ImageNet-1k's classes; labels follow the sorted WordNet ids, as ImageFolder does.

    Attributes:
        name: the list's name, or the file it came from.
        wnids: WordNet ids, sorted: `wnids[label]`.
        names: class names: `names[label]`.
        sha256: of the sorted ids, one a line.
    """

    name: str
    wnids: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256("\n".join(self.wnids).encode()).hexdigest()

    def from_imagenet1k(self) -> dict[int, int]:
        """ImageNet-1k's label to the label in this list."""
        index = {wnid: i for i, wnid in enumerate(imagenet1k())}
        return {index[wnid]: label for label, wnid in enumerate(self.wnids)}


def load_class_list(name_or_path: str) -> ClassList:
    """Loads a shipped list by name, or a file with one WordNet id a line.

    What follows a blank is ignored, and so are blank lines and lines that begin with `#`: labels follow the sorted ids.

    Args:
        name_or_path: `cmc` (the 100 classes of "Contrastive Multiview Coding", Tian et al. 2020) or a path.

    Raises:
        UserError: no such list or file, an id that is not one of ImageNet-1k's, or one that is there twice.
    """
    if name_or_path in SHIPPED:
        text = "\n".join(lines(SHIPPED[name_or_path]))
    elif Path(name_or_path).is_file():
        text = read_text(name_or_path)
    else:
        raise UserError(f"class list {name_or_path!r} is neither a file nor one of: {', '.join(SHIPPED)}")
    known = imagenet1k()
    found: dict[str, int] = {}
    for number, line in numbered_lines(text, name_or_path, gaps=True):
        if line.startswith("#"):
            continue
        wnid = line.split()[0]
        where = f"class list {name_or_path!r}, line {number}"
        if wnid not in known:
            raise UserError(f"{where}: {wnid!r} is not a WordNet id of ImageNet-1k (as n01440764)")
        if wnid in found:
            raise UserError(f"{where} has {wnid!r} twice: it is on line {found[wnid]}, too")
        found[wnid] = number
    if not found:
        raise UserError(f"class list {name_or_path!r} is empty")
    return ClassList(name_or_path, tuple(sorted(found)), tuple(known[w] for w in sorted(found)))
