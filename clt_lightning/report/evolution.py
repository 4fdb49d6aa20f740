"""The data of the page of features over the layers: what `graph --evolution` has measured, packed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clt_lightning.core.files import read_json
from clt_lightning.report.packing import pack_column

#: Where a run keeps it
PLACE = Path("evolution") / "results.json"
#: Numbers of a feature that the page shows
_NUMBERS = ("frequency", "selectivity", "position_share", "moran")
RULES = ("weights", "profiles", "edges")


def read_evolution(run: Path) -> dict[str, Any] | None:
    """What a run keeps of it; None where the command has not been run."""
    path = run / PLACE
    return read_json(path) if path.is_file() else None


def evolution_files(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and value of each of the page's data files: `evolution`, and `evolution/<ll>` with columns over features.

    Args:
        content: of `evolution/results.json`.
    """
    layers, pairs = content["layers"], content["pairs"]
    head = {key: content.get(key) for key in ("split", "images", "patches", "quantiles", "chains")}
    head["layers"] = [{key: layer[key] for key in ("block", "alive", "spread")} for layer in layers]
    head["features"] = len(layers[0]["frequency"])
    head["pairs"] = [
        {"same": pair["same"]}
        | {
            rule: {key: pair[rule][key] for key in ("spread", "chance", "share_spread") if key in pair[rule]}
            for rule in RULES
            if pair[rule] is not None
        }
        for pair in pairs
    ]
    yield "evolution", head
    for n, layer in enumerate(layers):
        columns: dict[str, Any] = {name: _numbers(layer[name]) for name in _NUMBERS}
        if n:
            for rule in RULES:
                if (found := pairs[n - 1][rule]) is not None:
                    columns[rule] = {
                        "kept": len(found["feature"][0]),
                        "feature": pack_column(np.array(found["feature"], np.int32).ravel()),
                        "value": _numbers([value for row in found["value"] for value in row]),
                    }
        yield f"evolution/{n:02d}", columns


def _numbers(values: list[float | None]) -> str:
    return pack_column(np.array([np.nan if value is None else value for value in values], np.float32))
