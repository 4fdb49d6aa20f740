"""The seed of a run."""

from __future__ import annotations

import os


def resolve(seed: int | None) -> int:
    """The seed itself; for None that of `seed_everything` (or `--seed_everything`), else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
