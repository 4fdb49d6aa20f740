"""The images that have a page of their own: the model's mistakes first."""

from __future__ import annotations

import numpy as np

from clt_lightning.analysis.results import load_arrays
from clt_lightning.report.choice import named, spread
from clt_lightning.report.draft import Draft
from clt_lightning.report.page import Page


def full_images(draft: Draft) -> list[int]:
    """Numbers of the images studied in full: those that the user named, the first mistakes, and some of every class."""
    keys, labels = draft.source.images
    options = draft.options
    chosen = named(keys, options.image_keys, "--image")
    chosen += mistaken(draft)[: options.mistakes] + spread(labels, options.images)
    return list(dict.fromkeys(chosen))


def mistaken(draft: Draft) -> list[int]:
    """Numbers of the images that the untouched model takes for another class, in the order of the split."""
    source = draft.source
    if source.evaluation is None or not (source.run / "evaluation" / f"{source.split}.npz").is_file():
        return []
    arrays = load_arrays(source.run, source.split)
    if not len(arrays["predicted"]):
        return []
    keys, labels = source.images
    predicted = dict(zip(arrays["keys"].tolist(), np.asarray(arrays["predicted"][0]).tolist()))
    return [n for n, key in enumerate(keys) if labels[n] >= 0 and predicted.get(key, labels[n]) != labels[n]]


PAGE = Page(
    name="images",
    title="Images",
    about="Images that have a page of their own; the model's mistakes first.",
    source="the model, at report time",
    needs="python -m clt_lightning report --run {run} --images 24",
    addresses=("images", "images?show=all&text=red"),
)
