"""Progress: lines in a log, one live line on a terminal, and messages that never meet it."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clt_lightning.core import progress as progress_module
from clt_lightning.core.people import count, duration
from clt_lightning.core.progress import Progress, track
from clt_lightning.core.terminal import LiveLine, first_process, is_live
from tests.terminal import Screen, on_terminal


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def work(clock: Clock, steps: int, seconds: float) -> None:
    with Progress("images", steps, "images") as progress:
        for _ in range(steps):
            clock.now += seconds
            progress.update()


def test_a_log_gets_a_line_every_few_per_cent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    work(clock, 1000, 0.5)  # 500 s: a twentieth takes 25 s
    lines = capsys.readouterr().err.splitlines()
    assert 20 <= len(lines) <= 24
    assert lines[0] == "images: 20 of 1,000 images (2.0%), 2 a second, about 8 min left"
    assert "images: 500 of 1,000 images (50.0%), 2 a second, about 4 min left" in lines
    assert lines[-1] == "images: 1,000 images in 8 min"


def test_short_work_says_nothing_and_fast_work_not_too_much(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    work(clock, 100, 0.01)
    assert capsys.readouterr().err == ""
    work(clock, 100, 0.2)  # a twentieth in a second: lines every 5 s
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r" images.*", "", line) for line in lines] == [f"images: {n}" for n in ("25 of 100", "50 of 100",
                                                                   "75 of 100", "100 of 100", "100")]  # fmt: skip


def test_long_work_is_never_silent_for_long(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    work(clock, 100_000, 1.0)  # more than a day
    lines = capsys.readouterr().err.splitlines()
    assert 150 < len(lines) < 220
    assert lines[0].startswith("images: 10 of 100,000 images (0.0%), 1 a second, about 27 h 46 min left")


def test_work_of_unknown_size(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("index", unit="shards", stream="stdout") as progress:
        for _ in range(30):
            clock.now += 1
            progress.update(note="at the end")
    assert capsys.readouterr().out.splitlines() == [
        "index: 10 shards, at the end, 1 a second",
        "index: 20 shards, at the end, 1 a second",
        "index: 30 shards in 30 s",
    ]


def test_work_that_slows_down_is_not_told_as_it_was(clock: Clock) -> None:
    with Progress("steps", 1000, show=True) as progress:
        for step in range(1, 501):
            clock.now += 0.1 if step <= 250 else 0.4
            progress.to(step)
        assert progress.left() == pytest.approx(200, rel=0.05)


def test_a_resumed_run_counts_its_own_steps(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("steps", 1000, done=900) as progress:
        for step in range(901, 1001):
            clock.now += 1
            progress.to(step)
            if step == 950:
                assert progress.left() == pytest.approx(50, rel=0.05)
    assert capsys.readouterr().err.splitlines()[-1] == "steps: 100 in 2 min"


def test_work_that_fails_is_not_summed_up(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        with Progress("images", 10):
            clock.now += 100
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    for item in track(range(10), "images"):
        clock.now += 100
        if item == 3:
            break
    assert " in " not in capsys.readouterr().err


def test_only_the_first_process_speaks(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"):
        with monkeypatch.context() as context:
            context.setenv(name, "1")
            assert not first_process()
            work(clock, 100, 1.0)
    assert capsys.readouterr() == ("", "")
    assert list(track(range(3), "images", show=False)) == [0, 1, 2]


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (0.04, 5, 89, 600, 14_700, 190_000)] == [
        "0.0 s", "5 s", "89 s", "10 min", "4 h 05 min", "2 d 4 h"
    ]  # fmt: skip
    assert [count(n) for n in (0, 12, 999.7, 4_560, 999_950, 39_700_000, 2.5e9)] == [
        "0", "12", "1 k", "4.56 k", "1 M", "39.7 M", "2.5 G"
    ]  # fmt: skip


# -- on a terminal -------------------------------------------------------------------------------------------------

TALKATIVE = """
import logging, sys, time, warnings
from clt_lightning.core.progress import Progress
Progress._redraw = 0.0
old = logging.StreamHandler()  # holds the stream as it was before
logging.getLogger("other").addHandler(old)
logging.getLogger("other").setLevel("INFO")
with Progress("outer work with a long name", 40, "images") as outer:
    for i in range(40):
        time.sleep(0.003)
        outer.update(note="a note that takes its room on the line")
        print(f"out {i} " + "x" * 30)
        logging.getLogger("other").info("log %d", i)
        sys.stderr.write(f"half {i}")
        outer.update(0)
        time.sleep(0.003)
        sys.stderr.write(" and half\\n")
        if i % 10 == 5:
            warnings.warn(f"beware {i}")
            with Progress("inner", 3) as inner:
                for _ in range(3):
                    time.sleep(0.01)
                    inner.update()
                    print("within")
print("end")
"""


@pytest.mark.parametrize("columns", [80, 140])
def test_messages_and_the_live_line_do_not_meet(columns: int) -> None:
    code, screen, raw = on_terminal([sys.executable, "-c", TALKATIVE], columns)
    assert code == 0, raw
    lines = screen.lines
    for i in range(40):
        assert f"out {i} {'x' * 30}" in lines
        assert f"log {i}" in lines
        assert f"half {i} and half" in lines
    assert lines.count("within") == 12
    assert lines[-2:] == ["end", ""]
    assert not any("outer work" in line or "inner" in line for line in lines)  # nothing of the bar stays behind
    shown = [line for line in screen.seen if "outer work" in line]
    assert len(shown) > 40
    assert all(line.startswith("outer work with a long name: ") for line in shown)
    assert [line for line in shown if re.search(r"\bout \d|\blog \d|half|within|beware|inner", line)] == []
    assert any(line.startswith("inner: 1 of 3 (33%)") for line in screen.seen)
    assert any("[####" in line for line in shown)
    assert not screen.wrapped
    assert max(map(len, screen.seen)) <= columns


def test_a_narrow_terminal_and_one_that_cannot_erase() -> None:
    _, screen, _ = on_terminal([sys.executable, "-c", TALKATIVE.replace('"x" * 30', '"x"')], 24)
    assert max(map(len, screen.seen)) <= 24
    assert any(line.startswith("..: 20 of 40 images") for line in screen.seen)
    for env in ({"TERM": "dumb"}, {"TERM": ""}):
        code, screen, raw = on_terminal([sys.executable, "-c", TALKATIVE], 80, env)
        assert code == 0
        assert "\033" not in raw
        assert "\r" not in raw.replace("\r\n", "")


def test_a_worker_that_is_forked_off_erases_the_line_too() -> None:
    code = """
import os, sys, time
from clt_lightning.core.progress import Progress
with Progress("work", 2) as progress:
    progress.update()
    child = os.fork()
    if child == 0:
        print("from the worker", file=sys.stderr)
        os._exit(0)
    os.waitpid(child, 0)
    progress.update()
"""
    _, screen, _ = on_terminal([sys.executable, "-c", code], 80)
    assert screen.lines == ["from the worker", ""]


def test_another_process_of_the_run_gives_way() -> None:
    code = "import sys; from clt_lightning.core.terminal import give_way; give_way(); print('rank 1', file=sys.stderr)"
    _, screen, raw = on_terminal([sys.executable, "-c", code], 80)
    assert raw.startswith("\r\033[Krank 1")
    assert screen.lines == ["rank 1", ""]


def test_a_pipe_on_either_side_means_lines(tmp_path: Path) -> None:
    code = "from clt_lightning.core.terminal import is_live; import sys; sys.exit(10 + is_live())"
    assert on_terminal([sys.executable, "-c", code], 80)[0] == 11
    for redirect in (">", "2>"):
        assert on_terminal(["bash", "-c", f'"$0" -c "$1" {redirect} {tmp_path}/log', sys.executable, code], 80)[0] == 10


def test_names_that_take_more_columns_than_letters() -> None:
    code = "from clt_lightning.core.progress import Progress\nwith Progress('\u6570\u636e' * 30 + '\\n\\t', 9): pass"
    _, screen, _ = on_terminal([sys.executable, "-c", code], 40)
    assert max(sum(2 if ord(letter) > 0x2E80 else 1 for letter in line) for line in screen.seen) <= 39
    assert len(screen.lines) == 1


def test_a_terminal_that_does_not_know_its_width() -> None:
    code = "from clt_lightning.core.terminal import line_width; print(line_width())"
    assert on_terminal([sys.executable, "-c", code], 0)[2].strip() == "80"


def test_a_reader_that_went_away_does_not_end_the_work() -> None:
    code = """
import sys
from clt_lightning.core.progress import Progress
Progress.shortest = Progress._first = 0.0
with Progress("work", 2000, stream="stdout") as progress:
    for _ in range(2000):
        progress.update()
print("end", file=sys.stderr)
sys.stderr.flush()
import os
os._exit(0)
"""
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | true; exit ${PIPESTATUS[0]}', sys.executable, code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "end\n"


def test_streams_that_are_closed_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stdout", stream)
        assert not is_live()


def test_the_streams_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    line = LiveLine()
    line.show("work")
    kept = sys.stdout
    print("above")
    line.show("")
    assert sys.stdout is out
    assert sys.stderr is err
    print("after", file=kept)  # whoever kept the wrapper can go on
    assert out.getvalue().endswith("after\n")
    screen = Screen(os.get_terminal_size().columns if sys.__stdout__ and sys.__stdout__.isatty() else 80)
    screen.feed(err.getvalue())
    assert screen.lines == [""]
