"""Imports run one way: from the command line down to the mathematics."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "clt_lightning"

# what each part may import of the others; `core` is open to all
ALLOWED = {
    "core": set(),
    "compat": set(),
    "transcoder": {"transcoder"},
    "backbone": {"backbone"},
    "data": {"data"},
    "metrics": {"metrics"},
    "interventions": {"backbone", "interventions", "transcoder"},
    "runs": {"compat", "runs"},
    "parallel": {"compat", "parallel", "runs", "transcoder"},
    "training": {"backbone", "compat", "interventions", "parallel", "runs", "training", "transcoder"},
    "analysis": {
        *("analysis", "backbone", "data", "interventions", "metrics"),
        *("runs", "training", "transcoder"),
    },
    "report": {"analysis", "backbone", "report", "runs", "transcoder"},
    "server": {"analysis", "backbone", "data", "report", "server", "transcoder"},
}
# the same of the rooms of a part
ROOMS = {
    "data": {
        "tars": {"tars"},
        "feed": {"feed", "tars"},
        "worlds": {"worlds"},
        "lists": {"lists"},
        "sharding": {"sharding", "tars"},
        "sets": {"feed", "lists", "sets", "sharding", "tars", "worlds"},
        "shard": {"sets", "sharding"},
    },
}
# the script that trains the demo's CLIP draws the demo's renders; loading that CLIP does not
EXCEPTIONS = {("backbone/clip/demo/train.py", "data"), ("backbone/clip/demo/evaluate.py", "data")}


def imported_parts(path: Path, above: str = "clt_lightning") -> set[str]:
    """What a file imports of a package: the names of its parts."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == above:
                names = [f"{above}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith(f"{above}."):
                found.add(name.removeprefix(f"{above}.").split(".")[0])
    return found


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_point_downwards(part: str) -> None:
    folder = PACKAGE / part
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]
    assert files
    for path in files:
        where = str(path.relative_to(PACKAGE))
        upwards = imported_parts(path) - ALLOWED[part] - {"core", "__version__"}
        upwards -= {name for file, name in EXCEPTIONS if file == where}
        assert not upwards, f"{where} imports {', '.join(sorted(upwards))}"


@pytest.mark.parametrize("part", sorted(ROOMS))
def test_imports_point_downwards_in_the_rooms_of_a_part(part: str) -> None:
    files = [path for path in (PACKAGE / part).rglob("*.py") if path != PACKAGE / part / "__init__.py"]
    rooms = {path: path.relative_to(PACKAGE / part).parts[0].removesuffix(".py") for path in files}
    assert set(rooms.values()) == set(ROOMS[part])
    for path, room in rooms.items():
        upwards = imported_parts(path, f"clt_lightning.{part}") - ROOMS[part][room]
        assert not upwards, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(upwards))}"


def test_the_transcoder_needs_neither_clip_nor_lightning() -> None:
    code = "import sys, clt_lightning.transcoder; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"lightning", "open_clip", "torchvision", "webdataset"} & set(loaded)


@pytest.mark.parametrize(
    "words",
    [["fit", "--config", "configs/nowhere.yaml"], ["test", "--run", "runs/nowhere"], ["fit", "-c", "$NOWHERE/x.yaml"]],
    ids=["config", "run", "variable"],
)
def test_a_wrong_path_is_said_before_anything_heavy_is_loaded(words: list[str]) -> None:
    code = (
        f"import sys\nfrom clt_lightning.cli.main import main\ntry:\n    main({words!r})\n"
        "except SystemExit as left:\n    print(left.code, *{m.split('.')[0] for m in sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    code_of_exit, *loaded = result.stdout.split()
    assert code_of_exit == "2"
    assert "where" in result.stderr.lower()
    assert not {"torch", "lightning", "open_clip", "jsonargparse"} & set(loaded)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom clt_lightning.cli.main import main\nmain(['--help'])\n"
        "print(*{m.split('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fit" in result.stdout
    assert "shard" in result.stdout
    assert not {"torch", "lightning", "open_clip"} & set(result.stderr.split())
