"""`serve` from the command line: one line with the address, an end without noise, and mistakes in a line."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from clt_lightning.cli.main import main
from clt_lightning.report.folder import MARK
from tests.report.conftest import read_data
from tests.server.conftest import Served


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *words])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) <= 3
    return said


def test_it_serves_and_ends_with_ctrl_c(served: Served, tmp_path: Path) -> None:
    notes = {"clt_notes": 1, "run": None, "features": {"2/7": {"label": "stripes"}}}
    (tmp_path / "notes.json").write_text(json.dumps(notes))
    command = [sys.executable, "-m", "clt_lightning", "serve", "--run", str(served.run), "--port", "0", "--images", "8"]
    process = subprocess.Popen(
        [*command, "--notes", str(tmp_path / "notes.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs have SIGINT ignored, and hand that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        while line and "http://" not in line:
            line = process.stdout.readline()
        found = re.search(r"serving shown/version_0 on (http://127\.0\.0\.1:\d+/) ", line)
        assert found is not None, line
        with urllib.request.urlopen(found[1]) as answer:
            assert b"clt-live" in answer.read()
        with urllib.request.urlopen(f"{found[1]}data/notes.js") as answer:
            assert answer.read() == b'CLT.put("notes",{"2/7": {"label": "stripes"}});\n'
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert out.splitlines()[-1] == "stopped"
    assert "Traceback" not in err
    assert "interrupted" not in err
    assert read_data(served.run / "report", "notes") == {}  # the file on the disk is as it was


def test_a_port_that_is_taken(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused(capsys, "--run", str(served.run), "--port", str(port))
    assert f"--port {port} is taken" in said
    assert "0 for any" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--port", "70000"], "--port 70000: ports are 1 to 65535"),
        (["--port", "-1"], "ports are 1 to 65535"),
        (["--port", "http"], "expected a whole number, got 'http'"),
        (["--images", "-3", "--port", "0"], "--images must be 0 or more, got -3"),
        (["--split", "train", "--port", "0"], "is a report of another split"),
        (["--host", "0.0.0.0"], "has no option --host"),
        (["--notes", "nowhere.json", "--port", "0"], "nowhere.json"),
        (["--report", "nowhere", "--port", "0"], "--report nowhere: holds no report"),
    ],
)
def test_mistakes(served: Served, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "--run", str(served.run), *words)


@pytest.mark.parametrize(("key", "value"), [("step", 7), ("pages", "older"), ("run", "another/version_0")])
def test_a_report_of_something_else(
    served: Served, tmp_path: Path, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(served.run, tmp_path / "shown" / "version_0", symlinks=True)
    mark = json.loads((run / "report" / MARK).read_text())
    (run / "report" / MARK).write_text(json.dumps(mark | {key: value}))
    said = refused(capsys, "--run", str(run), "--port", "0")
    assert "is a report of another" in said
    assert f"report --run {run}" in said


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    for option in ("--run", "--port", "--open", "--split", "--images", "--report", "--notes", "--trust_config"):
        assert re.search(rf"^  {option}\b.*\n?\s+\w", shown, re.MULTILINE), option
