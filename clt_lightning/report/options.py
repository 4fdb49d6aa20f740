"""What a report holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.report.notes import Notes
from clt_lightning.report.page import Page


@dataclass(frozen=True)
class ReportOptions:
    """What a report holds.

    Args:
        split: the split that was evaluated.
        features: cards per layer, the most frequent features first; None: every feature that ever fired.
        images: images studied in full, evenly over the classes.
        image_keys: further images to study in full, by key.
        mistakes: images that the model mistakes, the first of the split, to study in full as well.
        pages: images with a page of their own, at most: those studied in full, then those that pages show, then others.
        circuits: images with a circuit, those of `image_keys` first; None: 8, as far as they are made in two minutes.
        queries: query images of the retrieval page, evenly over the classes.
        query_keys: further query images, by key.
        neighbours: images a layer that are shown beside a query.
        thumbnail: side of a thumbnail in pixels.
        pictures: whether images are read at all; without them the pages show numbers alone.
        notes: what people have noted of features, shown as their names.
        opening: how the run is opened, as keyword arguments of `open_run`.
        own_pages: pages that are not this package's, after the others.
        changes: says of a config what it sets to something else than the defaults: (key, default, value), as text; None
            leaves that out.
    """

    split: str = "test"
    features: int | None = None
    images: int = 24
    image_keys: tuple[str, ...] = ()
    mistakes: int = 12
    pages: int = 2000
    circuits: int | None = None
    queries: int = 24
    query_keys: tuple[str, ...] = ()
    neighbours: int = 8
    thumbnail: int = 128
    pictures: bool = True
    notes: tuple[Notes, ...] = ()
    opening: dict[str, Any] = field(default_factory=dict)
    own_pages: tuple[Page, ...] = ()
    changes: Callable[[Mapping[str, Any]], list[tuple[str, str | None, str]]] | None = None

    def __post_init__(self) -> None:
        least = {
            "features": 0,
            "images": 0,
            "mistakes": 0,
            "pages": 0,
            "circuits": 0,
            "queries": 0,
            "neighbours": 1,
            "thumbnail": 16,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"--{name} must be {low} or more, got {value}")
