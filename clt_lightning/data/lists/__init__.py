"""Class lists and prompt templates that ship with the package, as text files: one entry a line, `{c}` is the class."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def lines(name: str) -> list[str]:
    """The lines of a shipped list.

    Args:
        name: `cifar100`, `coco`, `imagenet1k` (`<wnid> <name>`, in the order of ImageNet-1k's labels),
            `imagenet100_cmc` (wnids), `templates_cifar18`, `templates_imagenet7`, `templates_imagenet80`.
    """
    return (_HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def imagenet1k() -> dict[str, str]:
    """Class name by WordNet id, in the order of ImageNet-1k's labels (0 to 999)."""
    return dict(line.split(" ", 1) for line in lines("imagenet1k"))
