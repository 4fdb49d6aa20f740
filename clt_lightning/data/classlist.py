"""Class lists that pick classes of ImageNet-1k: which they are, in which order, and what they are called."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from clt_lightning.core.errors import UserError
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
    """Loads a shipped list by name, or a file with one WordNet id a line (what follows a blank is ignored).

    Args:
        name_or_path: `cmc` (the 100 classes of "Contrastive Multiview Coding", Tian et al. 2020) or a path.

    Raises:
        UserError: no such list or file, an id that is not one of ImageNet-1k's, or one that is there twice.
    """
    if name_or_path in SHIPPED:
        text = lines(SHIPPED[name_or_path])
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text(encoding="utf-8").splitlines()
    else:
        raise UserError(f"class list {name_or_path!r} is neither a file nor one of: {', '.join(SHIPPED)}")
    wnids = [line.split()[0] for line in text if line.strip() and not line.startswith("#")]
    known = imagenet1k()
    strange = [w for w in wnids if w not in known]
    if strange:
        raise UserError(
            f"class list {name_or_path!r}: {strange[0]!r} is not a WordNet id of ImageNet-1k (as n01440764)"
        )
    if len(set(wnids)) < len(wnids):
        raise UserError(f"class list {name_or_path!r} has an id twice: {max(wnids, key=wnids.count)!r}")
    if not wnids:
        raise UserError(f"class list {name_or_path!r} is empty")
    return ClassList(name_or_path, tuple(sorted(wnids)), tuple(known[w] for w in sorted(wnids)))
