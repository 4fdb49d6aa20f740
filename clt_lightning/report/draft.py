"""A report in the making: what pages write into, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from torch import Tensor

from clt_lightning.backbone.clip.images import to_pixels
from clt_lightning.core.progress import Progress, track
from clt_lightning.report.figures.style import save
from clt_lightning.report.folder import ReportFolder
from clt_lightning.report.options import ReportOptions
from clt_lightning.report.source import Source
from clt_lightning.report.sprites import Sprites
from clt_lightning.report.together import Together, alone

if TYPE_CHECKING:
    from clt_lightning.report.pictures import Pictures

    Choose = Callable[[AbstractSet[int]], Iterable[int]]
    Take = Callable[[Pictures, int, Tensor], None]


class Draft:
    """One report while it is built.

    Args:
        folder: where it is written.
        source: the run.
        options: what the report holds.
        progress: say on standard error how far it is.
        together: the runs beside it; None: it is alone.

    Attributes:
        files: addresses of the figures and tables that a page offers, by a name of its own; the scripts read them as
            `report.files`.
        kept: what a page's `write` leaves for its `finish`.
    """

    def __init__(
        self,
        folder: ReportFolder,
        source: Source,
        options: ReportOptions,
        progress: bool = False,
        together: Together | None = None,
    ) -> None:
        self.folder, self.source, self.options, self.progress = folder, source, options, progress
        self.together = together or alone(source)
        self.files: dict[str, Any] = {}
        self.kept: dict[str, Any] = {}
        self._shown: set[int] = set()
        self._takers: list[tuple[Choose, Take, bool]] = []
        self._figures: list[tuple[str, Callable[[], Figure]]] = []

    # -- what a page writes ------------------------------------------------------------------------------------------
    def data(self, name: str, value: Any) -> None:
        """Writes `data/<name>.js`, which the page's script reads with `CLT.load(name)`."""
        self.folder.data(name, value)

    def table(self, name: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
        """Writes `tables/<name>.csv`; returns its address."""
        return self.folder.table(name, head, rows)

    def figure(self, name: str, draw: Callable[[], Figure]) -> list[str]:
        """Has `figures/<name>.svg` and `.png` drawn later on; returns their addresses."""
        self._figures.append((name, draw))
        return [f"figures/{name}.svg", f"figures/{name}.png"]

    def note(self, text: str) -> None:
        """Says on the summary page, and to the one who builds the report, that something is missing."""
        self.source.notes.append(text)

    # -- what a page asks for ----------------------------------------------------------------------------------------
    def show(self, images: Iterable[int]) -> None:
        """Thumbnails of these images are shown: `CLT.thumb(sprites, image)` finds them."""
        self._shown.update(int(image) for image in images)

    def each(self, choose: Choose, take: Take, pages: bool = False) -> None:
        """Has `take(pictures, number, image)` called for images while the split is read, in its order.

        Whoever needs images gets them one at a time: they must not be in memory together.

        Args:
            choose: gives the numbers of the images, when all pages have said which thumbnails they show, which it is
                given. Thumbnails of them are made, too.
            take: is given each of them, normalised, `(3, H, W)`.
            pages: whether this makes the images' own pages, to which thumbnails lead.
        """
        self._takers.append((choose, take, pages))

    def label(self, number: int) -> str:
        """Name of an image's class; empty without."""
        label, names = self.source.images[1][number], self.source.classnames
        return names[label] if 0 <= label < len(names) else ""

    def work(self, what: str, total: int | None = None, unit: str = "") -> Progress:
        """Long work that says how far it is."""
        return Progress(what, total, unit, show=self.progress, sums_up=True)

    # -- what the build does between -----------------------------------------------------------------------------------
    def draw_figures(self) -> None:
        """Draws what pages asked for."""
        if self._figures:
            with self.work("figures", len(self._figures)) as work:
                for name, draw in self._figures:
                    save(self.folder, name, draw())
                    work.update()

    def read_pictures(self, pictures: Pictures | None) -> None:
        """One pass over the split: thumbnails of what is shown, and the images that pages take."""
        keys, labels = self.source.images
        takers = [(frozenset(choose(self._shown)), take, own) for choose, take, own in self._takers] if pictures else []
        self._shown.update(*(wanted for wanted, *_ in takers))
        sprites = Sprites(sorted(self._shown, key=lambda i: (labels[i], i)), self.options.thumbnail)
        if pictures is not None:
            place = {keys[i]: i for i in sprites.order}
            read = pictures.read(place)
            for key, image in track(read, "images", len(place), "images", show=self.progress, sums_up=True):
                number = place[key]
                sprites.add(number, to_pixels(image, pictures.mean, pictures.std))
                for wanted, take, _ in takers:
                    if number in wanted:
                        take(pictures, number, image)
            if sprites.missing:
                first = keys[sprites.missing[0]]
                self.note(
                    f"{len(sprites.missing)} images are no longer in the data (such as {first}): no thumbnails of them."
                )
        pages = frozenset().union(*(wanted for wanted, _, own in takers if own))
        sprites.write(self.folder, keys, labels, pages)
