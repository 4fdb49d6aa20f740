"""The one list of pages: navigation, build, tests and docs come from it, in this order."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

from clt_lightning.core.errors import UserError
from clt_lightning.report.page import Page
from clt_lightning.report.pages import (
    cascade,
    circuit,
    compare,
    contributions,
    evolution,
    faithfulness,
    feature,
    features,
    image,
    images,
    live,
    notes,
    own,
    population,
    query,
    reconstruction,
    retrieval,
    search,
    stability,
    steering,
    studies,
    summary,
)

#: The first is the front page; `data` that several pages read is written by the one that names it first
PAGES: tuple[Page, ...] = (
    summary.PAGE,
    compare.PAGE,
    stability.PAGE,
    features.PAGE,
    feature.PAGE,
    notes.PAGE,
    images.PAGE,
    image.PAGE,
    circuit.PAGE,
    evolution.PAGE,
    retrieval.PAGE,
    query.PAGE,
    reconstruction.PAGE,
    cascade.PAGE,
    contributions.PAGE,
    faithfulness.PAGE,
    population.PAGE,
    studies.PAGE,
    steering.PAGE,
    live.PAGE,
    search.PAGE,
    own.PAGE,
)


def all_pages(own: Sequence[Page] = ()) -> tuple[Page, ...]:
    """This package's pages, and then others.

    Raises:
        UserError: one of them has a name that is taken, or no script that sets it.
    """
    names = {page.name for page in PAGES}
    for page in own:
        if page.name in names:
            raise UserError(f"--page: there is a page {page.name!r} already: give yours another name")
        names.add(page.name)
        script = None if page.script is None else Path(page.script)
        if script is None or not script.is_file():
            what = "names no script" if script is None else f"names the script {script}, which is not there"
            raise UserError(
                f"--page: the page {page.name!r} {what}: set Page(script=Path(__file__).with_suffix('.js'))"
            )
        if not re.search(rf"CLT\.pages\.{page.name}\s*=", script.read_text(encoding="utf-8")):
            raise UserError(f"--page: {script} does not set CLT.pages.{page.name}, which draws the page")
    return (*PAGES, *own)


def load_page(name: str) -> Page:
    """The page of a dotted path, such as `my_package.norms.PAGE`.

    Raises:
        UserError: there is no such module, no such name in it, or it is no page.
    """
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None) if module else None
    except ImportError as error:
        raise UserError(f"--page {name}: {module} cannot be imported ({error})") from error
    if not isinstance(found, Page):
        what = "there is no such name" if found is None else f"it is a {type(found).__name__}"
        raise UserError(f"--page {name}: {what}; give the dotted path of a clt_lightning.report.page.Page")
    return found
