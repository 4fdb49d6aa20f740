"""The notebook's cells run from top to bottom, and what they end in shows itself."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "quickstart.ipynb"


def cells() -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    assert all(not cell.get("outputs") for cell in content["cells"])  # committed without results
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def run(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell; gives its last expression, as a notebook would show it."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "cell", "exec"), names)
        return None
    del tree.body[-1]
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def run_all(steps: str, n_train: str) -> list[Any]:
    names: dict[str, Any] = {}
    small = {"STEPS = 400": f"STEPS = {steps}", "n_train=8000, n_test=400": f"n_train={n_train}, n_test=64"}
    sources = cells()
    assert all(any(old in source for source in sources) for old in small)
    shown = []
    for source in sources:
        for old, new in small.items():
            source = source.replace(old, new)
        shown.append(run(source, names))
    return shown


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run_all("6", "128")
    pages = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    evaluation, image, steering = pages
    assert "replaced/0-3/all" in evaluation
    assert "mean_ablated/0-3/all" in evaluation
    assert image.count("data:image/png;base64,") > 4
    assert "attention" in image
    assert "named otherwise" in steering
    agreement = next(value for value in shown if isinstance(value, dict))
    assert set(agreement) == {"gradient", "integrated"}
    assert shown[-1].n_features == 768
    assert (tmp_path / "runs" / "notebook" / "transcoder" / "model.safetensors").is_file()


def test_the_blocks_of_docs_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (NOTEBOOK.parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    own = [block for block in blocks if "runs/quickstart" not in block]  # these need a finished run
    assert len(own) == 4
    names: dict[str, Any] = {}
    for block in own:
        run(block, names)
    assert names["module"].loss_config.cascade.stream == 0.5
    clip, images = names["clip"], names["images"]
    head = clip.zero_shot_head(["red circle", "blue square"], ["a photo of a {c}."])
    right = (clip.encode_image(images) @ head).argmax(1) == 0  # all labels are 0
    assert names["trainer"].callback_metrics["val/zero_shot/original"] == right.double().mean()
