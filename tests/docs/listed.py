"""What the docs hold and no test runs: not_run.yaml."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.docs.blocks import Block, Command

LISTED: dict[str, list[dict[str, str]]] = yaml.safe_load((Path(__file__).parent / "not_run.yaml").read_text())


def listed(thing: Command | Block) -> str | None:
    """The reason why a command or a block is not run, if there is one."""
    if isinstance(thing, Command):
        return next((e["reason"] for e in LISTED["commands"] if thing.text.startswith(e["begins"])), None)
    first = thing.text.splitlines()[0]
    return next(
        (e["reason"] for e in LISTED["blocks"] if e["page"] == thing.page and first.startswith(e["begins"])), None
    )
