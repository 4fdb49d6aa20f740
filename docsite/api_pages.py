"""The public names, a page a part; mkdocstrings writes out what they say of themselves."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import clt_lightning

#: Page -> (title, sentence, modules whose `__all__` is listed beside the names of `clt_lightning` that live there)
PAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "backbones": ("Backbones", "Frozen Vision Transformers: what is read of them, and what may be overridden.", ()),
    "transcoder": ("Transcoders", "Encoders, activations, decoders, codes, files.", ("transcoder",)),
    "training": ("Training", "The Lightning module, its settings and optimizers.", ("training.optim",)),
    "data": ("Data", "Sets over WebDataset tars.", ("data",)),
    "interventions": ("Interventions", "A transcoder in the backbone's place.", ("interventions",)),
    "analysis": (
        "Analysis",
        "What a trained transcoder explains: evaluation, one image, steering.",
        ("analysis", "analysis.bench", "analysis.probes"),
    ),
    "circuits": ("Circuits", "Attribution graphs and the interventions that check them.", ("analysis.circuits",)),
    "metrics": ("Metrics", "torchmetrics classes.", ("metrics",)),
    "callbacks": ("Callbacks", "What a run measures and writes.", ("callbacks",)),
    "core": ("Errors, sites, token sets", "What all parts share.", ()),
}
#: Further names that the guides use
MORE = {
    "backbones": ("clt_lightning.backbone.clip.frozen.FrozenCLIP",),
    "analysis": (
        "clt_lightning.analysis.study.study_images",
        "clt_lightning.analysis.study.StudyOptions",
        "clt_lightning.analysis.matching.match_features",
    ),
}


def pages() -> dict[str, str]:
    """File name -> Markdown."""
    names: dict[str, dict[str, None]] = {page: {} for page in PAGES}
    for name in clt_lightning.__all__:
        value = getattr(clt_lightning, name)
        if not inspect.ismodule(value):
            names[page_of(value)][_path(value)] = None
    for page, (_, _, modules) in PAGES.items():
        for path in MORE.get(page, ()):
            names[page][path] = None
        for module_name in modules:
            module = importlib.import_module(f"clt_lightning.{module_name}")
            for name in getattr(module, "__all__", ()):
                value = getattr(module, name)
                if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith(
                    "clt_lightning"
                ):
                    names[page][_path(value)] = None
    listed: set[str] = set()
    made = {}
    for page, (title, sentence, _) in PAGES.items():
        here = [path for path in names[page] if path not in listed]
        listed.update(here)
        made[f"{page}.md"] = f"# {title}\n\n{sentence}\n\n" + "\n".join(f"::: {path}\n" for path in here)
    return made


def page_of(value: Any) -> str:
    """The page of a public name, by where it lives."""
    place = value.__module__.removeprefix("clt_lightning.")
    for beginning, page in (
        ("analysis.circuits", "circuits"),
        ("analysis", "analysis"),
        ("backbone", "backbones"),
        ("transcoder", "transcoder"),
        ("training", "training"),
        ("interventions", "interventions"),
        ("data", "data"),
        ("metrics", "metrics"),
        ("callbacks", "callbacks"),
    ):
        if place.split(".")[: beginning.count(".") + 1] == beginning.split("."):
            return page
    return "core"


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
