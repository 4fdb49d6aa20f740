"""CONTRIBUTING's recipe of a data set: its own files and commands, run in a folder outside the package."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
KINDS = ("bars", "cross", "plain")


def recipe() -> tuple[dict[str, str], list[str]]:
    """The files and the commands of CONTRIBUTING's section."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.split(r"^#{2,3} ", text, flags=re.MULTILINE)
    (section_text,) = [part for part in section if part.startswith("A data set\n")]
    files = dict(re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)^```", section_text, re.MULTILINE | re.DOTALL))
    (commands,) = re.findall(r"^```sh\n(.*?)^```", section_text, re.MULTILINE | re.DOTALL)
    return files, commands.splitlines()


def flags(folder: Path, count: int = 60) -> Path:
    """Pictures of 24 x 24 pixels in their kinds, and the table that lists them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    lines = ["file,kind,split"]
    for i in range(count):
        kind = KINDS[i % 3]
        pixels = np.full((24, 24, 3), rng.integers(0, 255, 3), np.uint8)
        if kind != "plain":
            pixels[8:16] = rng.integers(0, 255, 3)
        if kind == "cross":
            pixels[:, 8:16] = pixels[8, 0]
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{kind},{'test' if i % 4 == 3 else 'train'}")
    (folder / "flags.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_contributing_s_recipe_makes_a_set_and_trains_on_it(tmp_path: Path) -> None:
    files, commands = recipe()
    assert len(files) == 2
    assert sum(len([line for line in source.splitlines() if line.strip()]) for source in files.values()) <= 80
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")
    flags(tmp_path / "raw")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    for command in commands:
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "clt_lightning"]
        # the curves are drawn from more images than there are here, and the evaluation is another test's
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (config,) = tmp_path.glob("runs/quickstart/version_0/config.yaml")
    assert "flags.module.Flags" in config.read_text()
    assert (tmp_path / "data/flags/classnames.txt").read_text().split() == list(KINDS)
    assert (tmp_path / "data/flags/val/nshards.txt").is_file()
    assert list(tmp_path.glob("runs/quickstart/version_0/checkpoints/*.ckpt"))
