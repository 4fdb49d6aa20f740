"""The sets: a folder each, with the data module in `module.py` and what makes its tars in `shard.py`, or one of them.

This is the table of them all: it holds what lies here. Imports no torch, which `modules` alone needs.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

from clt_lightning.data.sharding.sharder import Sharder, load_sharder

_HERE = Path(__file__).parent


def having(file: str) -> list[str]:
    """The names of the sets that have a file, `module` or `shard`, sorted."""
    return sorted(place.parent.name for place in _HERE.glob(f"*/{file}.py"))


@cache
def sharders() -> dict[str, Sharder]:
    """What makes each set's tars, by the set's name."""
    return {name: load_sharder(f"{__name__}.{name}.shard") for name in having("shard")}


def import_modules() -> None:
    """Imports every set's data module, after which a config may name it by its bare name."""
    for name in having("module"):
        import_module(f"{__name__}.{name}.module")
