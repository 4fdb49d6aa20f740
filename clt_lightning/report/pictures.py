"""Pixels for the pages: one pass over a split, and the study of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor


class Pictures(Protocol):
    """Where the pages' images come from, and what studies them."""

    @property
    def mean(self) -> Sequence[float]:
        """What was subtracted from each channel."""

    @property
    def std(self) -> Sequence[float]:
        """What each channel was divided by."""

    def read(self, wanted: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yields key and normalised image `(3, H, W)` of the wanted images, in any order, each at most once."""

    def study(self, images: Tensor, labels: Sequence[int], full: bool) -> list[dict[str, Any]]:
        """The data of the images' pages, `pack_study` of each (docs/report.md).

        Args:
            images: `(n, 3, H, W)`, each as `read` gives it.
            labels: their classes; -1: none.
            full: whether to study them in full.
        """

    def circuits(self, image: Tensor, key: str, label: int) -> dict[str, Any]:
        """The data of an image's circuits, `picture_of` and `pack_circuit` of each (docs/report.md).

        Args:
            image: `(3, H, W)`, as `read` gives it.
            key: its key.
            label: its class; -1: none.

        Raises:
            UserError: this model has no circuits.
        """
