"""Puts a report together."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from clt_lightning import __version__
from clt_lightning.clip.images import to_pixels
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress, track
from clt_lightning.report.choice import named, spread
from clt_lightning.report.features import FeaturePages
from clt_lightning.report.figures.curves import feature_scatter
from clt_lightning.report.figures.style import save
from clt_lightning.report.folder import ReportFolder, report_folder
from clt_lightning.report.numbers import to_list
from clt_lightning.report.pictures import Pictures
from clt_lightning.report.record import record_sections
from clt_lightning.report.source import Source, read_config, read_source
from clt_lightning.report.sprites import Sprites
from clt_lightning.report.tables import count_figures, write_tables_and_figures


@dataclass(frozen=True)
class ReportOptions:
    """What a report holds.

    Args:
        split: the split that was evaluated.
        features: cards a layer, the most frequent features first; None: every feature that ever fired.
        images: images with a page of their own, evenly over the classes.
        image_keys: further images with a page of their own, by key.
        queries: query images of the retrieval page, evenly over the classes.
        query_keys: further query images, by key.
        neighbours: images a layer that are shown beside a query.
        thumbnail: side of a thumbnail in pixels.
        pictures: whether images are read at all; without them the pages show numbers alone.
        opening: how the run is opened, as keyword arguments of `open_run`.
    """

    split: str = "test"
    features: int | None = None
    images: int = 24
    image_keys: tuple[str, ...] = ()
    queries: int = 24
    query_keys: tuple[str, ...] = ()
    neighbours: int = 8
    thumbnail: int = 128
    pictures: bool = True
    opening: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"features": 0, "images": 0, "queries": 0, "neighbours": 1, "thumbnail": 16}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"--{name} must be {low} or more, got {value}")


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
        _Builder(folder, source, options, progress).write(pictures)
        folder.mark({"clt_lightning": __version__, "run": source.title, "split": options.split})
        files, size = folder.size()
    seconds = time.perf_counter() - started
    return Built(target / "index.html", files, size, seconds, tuple(source.notes))


@dataclass
class _Builder:
    """One report; the steps run in the order of `write`."""

    folder: ReportFolder
    source: Source
    options: ReportOptions
    progress: bool
    shown: set[int] = field(default_factory=set)
    files: dict[str, Any] = field(default_factory=dict)
    explained: list[int] = field(default_factory=list)

    def write(self, pictures: Pictures | None) -> None:
        self.folder.assets(f"{self.source.title} · report", self.source.title)
        if self.source.evaluation is not None:
            evaluation = self.source.evaluation
            with self._work("figures", count_figures(evaluation)) as work:
                self.files |= write_tables_and_figures(self.folder, evaluation, work.update)
        self._features()
        self._retrieval()
        self._pictures(pictures)
        self._report()

    def _features(self) -> None:
        features = self.source.features
        if features is None:
            self.folder.data("features", None)
            return
        layers = features.info["layers"]
        pages = FeaturePages(features, self.options.features)
        with self._work("feature cards", pages.chunks, "files") as work:
            self.shown |= pages.write(self.folder, work.update)
        stats = features.stats
        names = ("frequency", "image_frequency", "cls_frequency", "mean_code", "max_code", "monosemanticity")
        rows = (
            [layer, feature, *(to_list(stats[name][layer, feature : feature + 1])[0] for name in names)]
            for layer in range(layers)
            for feature in range(features.info["features"])
        )
        table = self.folder.table("features", ["layer", "feature", *names], rows)
        self.files["features"] = [
            *save(self.folder, "features", feature_scatter(stats["frequency"], stats["mean_code"])),
            table,
        ]

    def _retrieval(self) -> None:
        retrieval = self.source.retrieval
        if retrieval is None:
            self.folder.data("retrieval", None)
            return
        keys, labels = self.source.images
        chosen = named(keys, self.options.query_keys, "--query") + spread(labels, self.options.queries)
        queries = []
        for image in track(dict.fromkeys(chosen), "retrieval", unit="queries", show=self.progress, sums_up=True):
            nearest = [retrieval.nearest(image, layer, self.options.neighbours) for layer in range(retrieval.n_layers)]
            layers = [[[int(i), s] for i, s in zip(found, to_list(cosines, 4))] for found, cosines in nearest]
            self.shown |= {image} | {entry[0] for layer in layers for entry in layer}
            queries.append(
                {
                    "image": image,
                    "key": keys[image],
                    "class": labels[image],
                    "label": self._name(labels[image]),
                    "layers": layers,
                }
            )
        self.folder.data("retrieval", queries)

    def _pictures(self, pictures: Pictures | None) -> None:
        """Thumbnails and explained images, from one pass over the split."""
        keys, labels = self.source.images
        if not keys or not self.options.pictures:
            if keys:
                self.source.notes.append("Built without pictures (--no_pictures).")
            self.folder.data(
                "sprites", {"size": 1, "columns": 1, "rows": 1, "cell": [], "keys": keys, "labels": labels}
            )
            self.folder.data("images", None)
            return
        if pictures is None:
            from clt_lightning.report.model import RunPictures

            pictures = RunPictures(self.source.run, self.options.split, **self.options.opening)
        chosen = named(keys, self.options.image_keys, "--image") + spread(labels, self.options.images)
        self.explained = list(dict.fromkeys(chosen))
        self.shown |= set(self.explained)
        sprites = Sprites(sorted(self.shown, key=lambda i: (labels[i], i)), self.options.thumbnail)
        place = {keys[i]: i for i in sprites.order}
        kept: dict[int, Tensor] = {}
        for key, image in track(
            pictures.read(place), "thumbnails", len(place), "images", show=self.progress, sums_up=True
        ):
            number = place[key]
            sprites.add(number, to_pixels(image, pictures.mean, pictures.std))
            if number in self.explained:
                kept[number] = image
        if sprites.missing:
            first = keys[sprites.missing[0]]
            self.source.notes.append(
                f"{len(sprites.missing)} images are no longer in the data (such as {first}): no thumbnails of them."
            )
        sprites.write(self.folder, keys, labels)
        self._explanations(pictures, kept)

    def _explanations(self, pictures: Pictures, images: dict[int, Tensor]) -> None:
        keys, labels = self.source.images
        overview: list[dict[str, Any]] = []
        there = [number for number in self.explained if number in images]
        for number in track(there, "explanations", unit="images", show=self.progress, sums_up=True):
            page = len(overview)
            found = pictures.explain(keys[number], images[number], labels[number])
            if found is None:
                self.source.notes.append("The data has no class names: no logit to explain, and no pages of images.")
                break
            pixels = Image.fromarray(to_pixels(images[number], pictures.mean, pictures.std))
            picture = f"pictures/{page:04d}.webp"
            pixels.save(self.folder.file(picture), quality=90, method=4)
            label = self._name(labels[number])
            best = max(found["classes"], key=lambda entry: entry["original"], default=None)
            self.folder.data(f"images/{page:04d}", {**found, "picture": picture, "title": label or found["classname"]})
            overview.append(
                {
                    "image": number,
                    "key": keys[number],
                    "label": label,
                    "predicted": "" if best is None else best["name"],
                }
            )
        self.folder.data("images", overview or None)

    def _work(self, what: str, total: int | None = None, unit: str = "") -> Progress:
        return Progress(what, total, unit, show=self.progress, sums_up=True)

    def _name(self, label: int) -> str:
        names = self.source.classnames
        return names[label] if 0 <= label < len(names) else ""

    def _report(self) -> None:
        source = self.source
        evaluation = source.evaluation
        again = f"python -m clt_lightning test --run {source.run}"
        images = "" if evaluation is None else f", {evaluation['images']} images"
        self.folder.data(
            "report",
            {
                "title": source.title,
                "lead": f"Cross-layer transcoder on a frozen CLIP, measured on the {source.split} split{images}.",
                "record": record_sections(source.record, (source.evaluation or {}).get("run")),
                "config": read_config(source.run),
                "notes": source.notes,
                "classnames": source.classnames,
                "evaluation": evaluation,
                "files": self.files,
                "commands": {
                    "test": again,
                    "features": again,
                    "retrieval": again,
                    "images": f"python -m clt_lightning report --run {source.run} --images 24",
                },
            },
        )
