"""Every command and every Python block of the README and the docs runs, at a small size."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clt_lightning.cli.main import main
from tests.docs.blocks import ROOT, Block, Command, blocks, commands, is_shell, pages
from tests.docs.listed import listed
from tests.docs.small import BEFORE, MORE, SMALLER, make_sources, names_for, tiny_architectures, words_for

_QUICKSTART = ("clt-lightning", "fit", "--config", "configs/quickstart.yaml")
FIRST = [
    *(_QUICKSTART,) * 2,
    (
        "clt-lightning",
        "fit",
        "--config",
        "configs/quickstart.yaml",
        "--config",
        "configs/site/residual.yaml",
        "--name=sae",
    ),
    *(("clt-lightning", "test", "--run", f"runs/quickstart/version_{n}") for n in (0, 1)),
    ("clt-lightning", "shard", "cifar100", "--source", "cifar-100-python.tar.gz", "--output", "data/cifar100"),
    ("clt-lightning", "shard", "coco", "--source", "FOLDER", "--output", "data/coco"),
    ("clt-lightning", "shard", "imagenet100", "--source", "FOLDER", "--output", "data/imagenet100"),
    ("clt-lightning", "shard", "folder", "--source", "photos", "--output", "data/photos", "--test-fraction", "0.1"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with configs, data, and two finished and evaluated runs of two steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it; put back afterwards
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    make_sources(tmp_path)
    with tiny_architectures(tmp_path / "open_clip"):
        for words in FIRST:
            run_ours(words)
        yield tmp_path


def run_ours(words: tuple[str, ...]) -> None:
    """One of our commands, in this process; what fails is an exception."""
    if words[1:2] == ("serve",):
        serve(words_for(words))
        return
    try:
        main(words_for(words) if len(words) > 1 and not words[1].startswith("-") else list(words[1:]))
    except SystemExit as ended:
        if ended.code:
            raise AssertionError(f"exit code {ended.code}") from ended


def serve(words: list[str]) -> None:
    """The server starts, says its address, and ends with Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clt_lightning", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("http://127.0.0.1:" in line for line in lines), process.communicate()[1]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode in (0, 130)
    finally:
        process.kill()


def run_python(block: Block, names: dict[str, Any]) -> None:
    """A Python block, with the parts that are made smaller."""
    text = block.text
    for old, new in SMALLER.get(block.page, ()):
        text = text.replace(old, new)
    exec(compile(text, block.place, "exec"), names)


def test_what_is_made_smaller_stands_on_its_page() -> None:
    for page, parts in SMALLER.items():
        text = "".join(block.text for block in blocks() if block.page == page and block.language == "python")
        for old, _ in parts:
            assert old in text, f"{page}: {old}"
    assert {words[1] for words in (c.words for c in commands() if c.ours) if len(words) > 1} >= {*MORE}


@pytest.mark.slow
def test_every_command_and_block_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only = os.environ.get("CLT_DOCS_PAGES", "").split()  # a few while they are written
    counts = dict.fromkeys(
        ("commands run", "further rounds of loops", "listed", "Python blocks run", "configs read"), 0
    )
    done: set[tuple[str, ...]] = set()
    failed: list[str] = []
    for page in pages():
        if only and page not in only:
            continue
        for folder in ("exported", "ours"):
            shutil.rmtree(place / folder, ignore_errors=True)
        for words in BEFORE.get(page, ()):
            run_ours(("clt-lightning", *words))
        names: dict[str, Any] = {}
        for block in (b for b in blocks() if b.page == page):
            try:
                if is_shell(block):
                    for command in (c for c in commands() if c.block == block):
                        run_command(command, done, counts)
                elif listed(block):
                    counts["listed"] += 1
                elif block.language == "python":
                    names = names or names_for(page)
                    run_python(block, names)
                    counts["Python blocks run"] += 1
                elif block.language == "yaml":
                    (place / "block.yaml").write_text(block.text)
                    read = ["fit", "--config", "configs/vitb32.yaml", "--config", "block.yaml", "--print_config"]
                    with pytest.raises(SystemExit) as ended:
                        main(read)
                    assert ended.value.code == 0
                    counts["configs read"] += 1
            except Exception:
                failed.append(f"{block.place}: {traceback.format_exc(limit=-3)}\n{capsys.readouterr().err[-600:]}")
    with capsys.disabled():
        print("\ndocs: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    assert not failed, "\n".join(failed)


def run_command(command: Command, done: set[tuple[str, ...]], counts: dict[str, int]) -> None:
    """A command of a page; the same words are run once, and of a loop the first round."""
    if listed(command):
        counts["listed"] += 1
    elif command.again:
        counts["further rounds of loops"] += 1
    else:
        counts["commands run"] += 1
        stays = command.words[1:2] in (("test",), ("report",), ("validate",), ("plan",), ("serve",), ("shard",))
        if command.words in done and stays:
            return
        if command.words[1:2] == ("fit",):
            done.clear()  # there is a newer run, of which nothing was measured yet
        done.add(command.words)
        if command.ours:
            run_ours(command.words)
        else:
            subprocess.run([sys.executable, *command.words[1:]], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
