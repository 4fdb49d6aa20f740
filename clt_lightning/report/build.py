"""Puts a report together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from clt_lightning import __version__
from clt_lightning.report.draft import Draft
from clt_lightning.report.folder import report_folder
from clt_lightning.report.options import ReportOptions
from clt_lightning.report.pages import PAGES
from clt_lightning.report.pictures import Pictures
from clt_lightning.report.source import read_source


@dataclass(frozen=True)
class Built:
    """A finished report.

    Attributes:
        index: the page to open.
        files: how many files it has.
        bytes: how large it is.
        seconds: how long it took.
        notes: what is missing, as on the summary page.
    """

    index: Path
    files: int
    bytes: int
    seconds: float
    notes: tuple[str, ...]


def build_report(
    run: str | Path,
    options: ReportOptions | None = None,
    output: str | Path | None = None,
    pictures: Pictures | None = None,
    progress: bool = False,
) -> Built:
    """Writes a run's report: a folder whose `index.html` opens from the disk.

    Args:
        run: the run's folder, evaluated before; `runs/<name>` is its newest finished version.
        options: what it holds.
        output: the folder to write; None: `<run>/report`.
        pictures: where images come from; None: the run's own data and model.
        progress: say on standard error how far it is.

    Raises:
        UserError: nothing to show, data that cannot be read, or a folder that is in the way.
    """
    started = time.perf_counter()
    options = options or ReportOptions()
    source = read_source(Path(run), options.split, with_model=options.pictures and pictures is None)
    target = source.run / "report" if output is None else Path(output)
    with report_folder(target) as folder:
        draft = Draft(folder, source, options, progress)
        folder.assets(f"{source.title} · report", source.title, [page.entry(str(source.run)) for page in PAGES])
        _write(draft, pictures)
        folder.mark({"clt_lightning": __version__, "run": source.title, "split": options.split})
        files, size = folder.size()
    seconds = time.perf_counter() - started
    return Built(target / "index.html", files, size, seconds, tuple(source.notes))


def _write(draft: Draft, pictures: Pictures | None) -> None:
    source, options = draft.source, draft.options
    for page in PAGES:
        page.write(draft)
    draft.draw_figures()
    there = bool(source.images[0])
    if there and not options.pictures:
        pictures = None
        draft.note("Built without pictures (--no_pictures).")
    elif there and pictures is None:
        from clt_lightning.report.model import RunPictures

        pictures = RunPictures(source.run, options.split, **options.opening)
    draft.read_pictures(pictures if there else None)
    if pictures is not None and there:
        for page in PAGES:
            if page.finish is not None:
                page.finish(draft, pictures)
    images = "" if source.evaluation is None else f", {source.evaluation['images']} images"
    draft.data(
        "report",
        {
            "title": source.title,
            "lead": f"Cross-layer transcoder on a frozen CLIP, measured on the {source.split} split{images}.",
            "notes": source.notes,
            "classnames": source.classnames,
            "evaluation": source.evaluation,
            "files": draft.files,
        },
    )
