"""What a page is: a Python file that makes its data, a script that draws them, and an entry in a list."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clt_lightning.core.errors import UserError

if TYPE_CHECKING:
    from clt_lightning.report.draft import Draft
    from clt_lightning.report.pictures import Pictures


def _nothing(draft: Draft) -> None:
    """A page of data that others write."""


@dataclass(frozen=True)
class Page:
    """A page of the report: `pages/<name>.py` holds it as `PAGE`, `pages/<name>.js` sets `CLT.pages.<name>`.

    A page of one's own lies anywhere, names its `script`, and comes into a report by `report --page my.module.PAGE`.
    Navigation, the summary's list, the build, the browser tests and the table of docs/report.md come from these fields.

    Args:
        name: its address is `#/<name>`; a word without signs.
        title: in the navigation.
        about: what it shows, in a sentence.
        source: which files of a run it draws, for the docs.
        needs: the command that makes them where they are missing, with `{run}`; shown on the page.
        under: the page that leads here, for pages of one thing (a feature, an image); None: in the navigation.
        optional: not in the navigation but where a script puts it there (`CLT.navigation`): where there is a server, or
            another run.
        addresses: addresses that the tests open, on a made-up run of 4 layers and 160 features.
        write: makes the page's data: `draft.data`, `draft.table`, `draft.figure`, and `draft.show` for thumbnails.
        finish: the same after the images were read (`draft.each`); None where a page needs none.
        script: the file that sets `CLT.pages.<name>`; None: `<name>.js` among this package's own pages.

    Raises:
        UserError: a name with other signs than small letters and `_`.
    """

    name: str
    title: str
    about: str
    source: str
    needs: str = "python -m clt_lightning test --run {run}"
    under: str | None = None
    optional: bool = False
    addresses: tuple[str, ...] = ()
    write: Callable[[Draft], None] = _nothing
    finish: Callable[[Draft, Pictures], None] | None = None
    script: str | Path | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z_]+", self.name):
            raise UserError(f"a page's name is made of small letters and _, got {self.name!r}")

    def entry(self, run: str) -> dict[str, Any]:
        """What the scripts know of it: `CLT.page(name)`."""
        needs = self.needs.format(run=run)
        entry = {"name": self.name, "title": self.title, "about": self.about, "under": self.under, "needs": needs}
        return entry | {"optional": self.optional}
