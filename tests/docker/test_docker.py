"""The Docker files and shell scripts, as far as they can be checked without an engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from clt_lightning.cli.main import TRAINER_COMMANDS

ROOT = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments, continued lines joined, comments left out."""
    lines = [
        line for line in (ROOT / "docker/Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def test_the_image_runs_the_command_line_as_a_user_without_rights() -> None:
    last = instructions()[max(i for i, (word, _) in enumerate(instructions()) if word == "FROM") :]
    assert dict(last)["USER"] not in ("root", "0")
    assert json.loads(dict(last)["ENTRYPOINT"]) == ["python", "-m", "clt_lightning"]
    assert instructions()[0][0] == "ARG"
    assert {rest.split()[0] for word, rest in instructions() if word == "FROM"} == {"${BASE_IMAGE}"}


def test_dependencies_are_a_layer_of_their_own_before_the_source() -> None:
    steps = instructions()
    source = steps.index(("COPY", "clt_lightning clt_lightning"))
    dependencies = [i for i, (word, rest) in enumerate(steps) if word == "RUN" and "pip install ." in rest]
    assert len(dependencies) == 1
    assert dependencies[0] < source
    assert ("RUN", "pip install --no-deps .") in steps[source:]


def test_every_file_that_is_copied_exists_and_is_let_through() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for name in rest.split()[:-1]:
                assert (ROOT / name).exists(), name
                assert f"!{name}" in ignore, name


def test_compose_trains_with_tensorboard_beside_it() -> None:
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
    train, tensorboard = compose["services"]["train"], compose["services"]["tensorboard"]
    assert (ROOT / "docker" / train["build"]["context"] / train["build"]["dockerfile"]).is_file()
    assert train["command"][0] in TRAINER_COMMANDS
    default = re.fullmatch(r"\$\{CONFIG:-(.+)\}", train["command"][2])
    assert default
    assert (ROOT / default[1]).is_file()
    assert tensorboard["image"] == train["image"]
    arguments = {rest.split("=")[0] for word, rest in instructions() if word == "ARG"}
    assert set(train["build"]["args"]) <= arguments


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint on the PATH: `make test` brings it")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", ROOT / "docker/Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


SCRIPTS = [".ci/run", "slurm/train.sbatch", "tests/slurm/start_slurm.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_shell(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on the PATH: `make test` brings it")
@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script: str) -> None:
    done = subprocess.run(["shellcheck", ROOT / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
