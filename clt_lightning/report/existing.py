"""A report that is there already: whether it fits this run and these pages, and what is added to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json, write_text
from clt_lightning.core.paths import expand
from clt_lightning.report.build import build_report
from clt_lightning.report.evolution import evolution_files
from clt_lightning.report.folder import MARK, data_text, pages_version
from clt_lightning.report.options import ReportOptions
from clt_lightning.report.pages.circuit import address
from clt_lightning.report.source import Source

#: Circuits of an image on its page
_MOST = 12


def report_of(source: Source, given: str | Path | None, opening: Mapping[str, Any], option: str = "--report") -> Path:
    """The folder of a run's report, which is made where it is not there.

    Args:
        source: the run.
        given: the folder that the user named; None: `<run>/report`.
        opening: how the run is opened, should the report be made.
        option: the option that names the folder, for messages.

    Raises:
        UserError: no report in the folder that was named, or one of another run, split, step or version of the pages.
    """
    folder = source.run / "report" if given is None else Path(expand(Path(given), option))
    again = f"python -m clt_lightning report --run {source.run}"
    again += "" if given is None else f" --output {given}"
    if not (folder / MARK).is_file():
        if given is not None:
            raise UserError(f"{option} {given}: holds no report; `{again}` makes one there")
        print("there is no report yet: it is made first")
        build_report(source.run, ReportOptions(split=source.split, opening=dict(opening)), progress=True)
    about = read_json(folder / MARK)
    wanted = {"run": source.title, "split": source.split, "step": source.id.step, "pages": pages_version()}
    stale = [name for name, value in wanted.items() if about.get(name) != value]
    if stale:
        names = {"run": "run", "split": "split", "step": "step", "pages": "version of the pages"}
        raise UserError(f"{folder} is a report of another {names[stale[0]]}: `{again}` makes it anew")
    return folder


def read_data(folder: Path, name: str) -> Any:
    """The value of `data/<name>.js` of a report; None where the file is not there."""
    path = folder / "data" / f"{name}.js"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    return json.loads(text[text.index(",") + 1 : text.rindex(")")])


def add_circuit(folder: Path, number: int, found: dict[str, Any]) -> str:
    """Adds a circuit to an image of a report; one of the same targets is replaced.

    Args:
        folder: of the report.
        number: of the image.
        found: `picture_of`, and under `circuits` one of `pack_circuit`.

    Returns:
        The page's address in the report.

    Raises:
        UserError: there are `_MOST` circuits of other targets already.
    """
    (circuit,) = found["circuits"]
    before = read_data(folder, address(number))
    circuits = [] if before is None else list(before["circuits"])
    same = [n for n, other in enumerate(circuits) if other["targets"] == circuit["targets"]]
    at = same[0] if same else len(circuits)
    if at >= _MOST:
        raise UserError(f"image {number} of {folder} has {_MOST} circuits already: `report` makes the folder anew")
    circuits[at : at + 1] = [circuit]
    _put(folder, address(number), found | {"image": number, "circuits": circuits})
    listed = {entry["image"]: entry["targets"] for entry in (read_data(folder, "circuits") or {"images": []})["images"]}
    listed[number] = ["; ".join(one["targets"]) for one in circuits]
    _put(folder, "circuits", {"images": [{"image": n, "targets": names} for n, names in sorted(listed.items())]})
    return f"#/circuit/{number}" + (f"?target={at}" if at else "")


def add_evolution(folder: Path, content: dict[str, Any]) -> str:
    """Puts features over the layers into a report, in the place of those before.

    Args:
        folder: of the report.
        content: of `evolution/results.json`.

    Returns:
        The page's address in the report.
    """
    for name, value in evolution_files(content):
        _put(folder, name, value)
    return "#/evolution"


def _put(folder: Path, name: str, value: Any) -> None:
    write_text(folder / "data" / f"{name}.js", data_text(name, value))
