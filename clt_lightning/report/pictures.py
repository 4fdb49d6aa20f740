"""Pixels for the pages: one pass over a split, and the explanation of single images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor


class Pictures(Protocol):
    """Where the pages' images come from, and what explains one of them."""

    @property
    def mean(self) -> Sequence[float]:
        """What was subtracted from each channel."""

    @property
    def std(self) -> Sequence[float]:
        """What each channel was divided by."""

    def read(self, wanted: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yields key and normalised image `(3, H, W)` of the wanted images, in any order, each at most once."""

    def explain(self, key: str, image: Tensor, label: int) -> dict[str, Any] | None:
        """`ImageExplanation.to_json()` of an image (docs/results-schema.md), None where there are no classes.

        Args:
            key: of the image.
            image: as `read` gives it.
            label: its class; -1: none.
        """
