"""The runs that a report stands beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clt_lightning.report.comparison import Matched
from clt_lightning.report.source import Source


@dataclass(frozen=True)
class Together:
    """Several runs, and which of them this report is of.

    Attributes:
        current: its number among them.
        sources: all of them.
        comparison: what the page that compares them shows; None where there is one alone.
        matches: features of every two.
        stability: what all pairs say together; None where no two can be compared.
    """

    current: int
    sources: Sequence[Source]
    comparison: dict[str, Any] | None = None
    matches: Sequence[Matched] = ()
    stability: dict[str, Any] | None = None

    def runs(self) -> dict[str, Any]:
        """What every page knows of them (`data/runs.js`)."""
        hrefs = [entry["href"] for entry in self.comparison["runs"]] if self.comparison else [""]
        runs = [source.id.to_json() | {"href": href} for source, href in zip(self.sources, hrefs)]
        return {"current": self.current, "runs": runs}


def alone(source: Source) -> Together:
    """A report of one run."""
    return Together(0, [source])
