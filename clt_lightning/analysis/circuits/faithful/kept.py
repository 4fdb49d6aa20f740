"""A run's baseline: made from its training images once, and kept in its folder."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from clt_lightning.analysis.circuits.faithful.baseline import Baseline, Kind, baseline_of
from clt_lightning.analysis.circuits.faithful.dictionary import Dictionary
from clt_lightning.core.files import sha256
from clt_lightning.core.say import say

if TYPE_CHECKING:
    from clt_lightning.analysis.run import Run

#: Training images behind a baseline, if nothing else is asked for
IMAGES = 1024


def kept_baseline(
    run: Run, units: Dictionary, kind: Kind = "median", images: int = IMAGES, *, name: str = "features"
) -> Baseline:
    """The baseline over a run's training images: read from `<run>/baseline/`, or made and kept there.

    One that was made for other weights is made anew.

    Args:
        run: an opened run.
        units: what is set to it.
        kind: median, mean or zero.
        images: training images.
        name: what its file is called by.

    Raises:
        UserError: training images that cannot be read, or a file that is no baseline of these units.
    """
    if kind == "zero":
        return Baseline.zeros(run.clip, units)
    path = run.folder / "baseline" / f"{name}-{kind}-{images}.safetensors"
    weights = sorted((run.folder / "transcoder").glob("*.safetensors"))
    about = {"transcoder": ",".join(sha256(file) for file in weights)}
    if path.is_file():
        found, facts = Baseline.load(path)
        if facts.get("transcoder") == about["transcoder"]:
            found.check(run.clip, units)
            return found
    batches = partial(run.batches, "train", limit=images)
    found = baseline_of(run.clip, units, batches, kind, images=images, progress=True)
    if os.access(run.folder, os.W_OK):
        found.save(path, about)
    else:
        say(f"baseline: {run.folder} cannot be written to, so it is not kept")
    return found
