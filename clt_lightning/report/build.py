"""Puts a report together."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clt_lightning import __version__
from clt_lightning.core.errors import UserError
from clt_lightning.report.comparison import compare, match_runs
from clt_lightning.report.draft import Draft
from clt_lightning.report.folder import ReportFolder, pages_version, report_folder
from clt_lightning.report.notes import check_about
from clt_lightning.report.options import ReportOptions
from clt_lightning.report.pages import all_pages
from clt_lightning.report.pictures import Pictures
from clt_lightning.report.source import Source, read_source
from clt_lightning.report.together import Together, alone


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
    check_about(options.notes, [source.id])
    target = source.run / "report" if output is None else Path(output)
    with report_folder(target) as folder:
        _one(folder, source, options, alone(source), pictures, progress)
        return _built(folder, target, [source], options, started)


def build_comparison(
    runs: Sequence[str | Path],
    options: ReportOptions | None = None,
    output: str | Path | None = None,
    pictures: Sequence[Pictures] | None = None,
    progress: bool = False,
) -> Built:
    """Writes a report of each of several runs, and a page that compares them, in one folder.

    Args:
        runs: two or more, as in `build_report`; the page compares the others with the first.
        options: what each report holds.
        output: the folder to write; None: `<first run>/comparison`.
        pictures: of each run, as in `build_report`.
        progress: say on standard error how far it is.

    Raises:
        UserError: fewer than two runs, one that is named twice, and as `build_report`.
    """
    started = time.perf_counter()
    options = options or ReportOptions()
    read = [read_source(Path(run), options.split, with_model=options.pictures and pictures is None) for run in runs]
    places = [source.run.resolve() for source in read]
    if len(set(places)) < len(places):
        twice = next(source.run for n, source in enumerate(read) if places[n] in places[:n])
        raise UserError(f"--run {twice} is named twice: a comparison takes different runs")
    if len(read) < 2:
        raise UserError("a comparison takes two runs or more")
    check_about(options.notes, [source.id for source in read])
    matches, stability = match_runs(read, progress)
    names = [f"{n}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', source.title)}" for n, source in enumerate(read)]
    comparison = compare(read, [f"../{name}/index.html" for name in names], matches)
    target = read[0].run / "comparison" if output is None else Path(output)
    with report_folder(target) as folder:
        for number, (source, name) in enumerate(zip(read, names)):
            (folder.path / name).mkdir()
            together = Together(number, read, comparison, matches, stability)
            own = None if pictures is None else pictures[number]
            _one(ReportFolder(folder.path / name), source, options, together, own, progress)
        folder.lead_to(f"{names[0]}/index.html#/compare", f"{len(read)} runs compared")
        return _built(folder, target, read, options, started)


def _one(
    folder: ReportFolder,
    source: Source,
    options: ReportOptions,
    together: Together,
    pictures: Pictures | None,
    progress: bool,
) -> None:
    draft = Draft(folder, source, options, progress, together)
    pages = all_pages(options.own_pages)
    scripts = {page.name: Path(page.script) for page in pages if page.script is not None}
    entries = [page.entry(str(source.run)) for page in pages]
    folder.assets(f"{source.title} · report", source.title, entries, scripts)
    _write(draft, pictures)


def _built(
    folder: ReportFolder, target: Path, sources: Sequence[Source], options: ReportOptions, started: float
) -> Built:
    steps = [source.id.step for source in sources]
    titles = [source.title for source in sources]
    folder.mark(
        {
            "clt_lightning": __version__,
            "run": titles[0] if len(titles) == 1 else titles,
            "split": options.split,
            "step": steps[0] if len(steps) == 1 else steps,
            "pages": pages_version(),
        }
    )
    files, size = folder.size()
    several = len(sources) > 1
    notes = [f"{source.title}: {note}" if several else note for source in sources for note in source.notes]
    return Built(target / "index.html", files, size, time.perf_counter() - started, tuple(notes))


def _write(draft: Draft, pictures: Pictures | None) -> None:
    source, options = draft.source, draft.options
    pages = all_pages(options.own_pages)
    for page in pages:
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
        for page in pages:
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
