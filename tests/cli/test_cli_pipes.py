"""Commands whose output nobody reads to the end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from clt_lightning.cli import main as main_module
from clt_lightning.cli.main import main


@pytest.mark.parametrize("words", ["--help", "plan --tables"])
def test_a_reader_that_has_had_enough(words: str) -> None:
    command = f'"$0" -m clt_lightning {words} | true; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command, sys.executable], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_pipe_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(words: list[str]) -> None:
        raise BrokenPipeError(32, "of a data worker")

    monkeypatch.setattr(main_module, "_run", fails)
    monkeypatch.setattr(main_module, "_reader_is_gone", lambda: False)
    with pytest.raises(BrokenPipeError, match="of a data worker"):
        main(["fit"])
