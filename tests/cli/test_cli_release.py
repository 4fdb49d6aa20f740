"""What an installation has: the version, configs, completion, and a wheel and an sdist with everything in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import clt_lightning
from clt_lightning.cli import shipped
from clt_lightning.cli.completion import whole_parser
from clt_lightning.cli.main import COMMANDS, TRAINER_COMMANDS, main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([option])
    assert capsys.readouterr().out == f"clt_lightning {clt_lightning.__version__}\n"


def test_the_version_stands_in_one_place() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == clt_lightning.__version__
    assert 'version = "' not in (ROOT / "pyproject.toml").read_text().split("[tool.setuptools.dynamic]")[0]
    assert f"version = {{{clt_lightning.__version__}}}" in (ROOT / "README.md").read_text()


def test_configs_of_the_package_are_taken_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "plan",
        "--config",
        "configs/vitb32.yaml",
        "--config=configs/data/coco.yaml",
        "--config",
        "configs/no.yaml",
    ]
    found = shipped.with_shipped_configs(words)
    assert found[2] == str(ROOT / "configs" / "vitb32.yaml")
    assert found[3] == f"--config={ROOT / 'configs' / 'data' / 'coco.yaml'}"
    assert found[5] == "configs/no.yaml"  # what is nowhere is told by whoever reads it
    assert capsys.readouterr().err.count("the package's own is taken") == 2
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "vitb32.yaml").write_text("{}")
    assert shipped.with_shipped_configs(words)[2] == "configs/vitb32.yaml"
    assert shipped.with_shipped_configs(["fit", "--name", "configs/vitb32.yaml"])[2] == "configs/vitb32.yaml"


def test_an_installed_wheel_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "share" / "clt-lightning" / "configs"
    place.mkdir(parents=True)
    (place / "quickstart.yaml").write_text("{}")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "lib" / "site" / "clt_lightning" / "cli" / "shipped.py"))
    assert shipped.shipped_folder() == place


def test_completion_knows_commands_options_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    shtab = pytest.importorskip("shtab")
    main(["completion", "bash"])
    script = capsys.readouterr().out
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in ("clt-lightning", *words))
        ask = (
            f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_clt_lightning; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(["bash"], input=f"{script}\n{ask}\n", text=True, capture_output=True, check=True)
        return set(done.stdout.split())

    assert completed("") >= {*COMMANDS, *TRAINER_COMMANDS}
    assert "--model.transcoder.n_features" in completed("fit", "--model.transcoder.n")
    assert "--run" not in completed("fit", "--ru")
    assert "--run" in completed("test", "--ru")
    assert completed("export", "--format", "") == {"safetensors", "circuit-tracer", "sae-lens"}
    assert "zsh" in shtab.SUPPORTED_SHELLS


def test_every_command_is_in_it() -> None:
    pytest.importorskip("shtab")
    text = whole_parser().format_help()
    assert all(name in text for name in (*COMMANDS, *TRAINER_COMMANDS))


class Built(NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel and the sdist, made of a copy of what git would have, with the setuptools that is here."""
    place = tmp_path_factory.mktemp("release")
    tree = place / "tree"
    shutil.copytree(ROOT, tree, ignore=_what_is_not_packed)
    code = (
        "import sys, setuptools.build_meta as b; to = sys.argv[1]; print(b.build_sdist(to)); print(b.build_wheel(to))"
    )
    command = [sys.executable, "-c", code, str(place)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    name = f"clt_lightning-{clt_lightning.__version__}"
    return Built(place / f"{name}-py3-none-any.whl", place / f"{name}.tar.gz")


def _what_is_not_packed(folder: str, names: list[str]) -> set[str]:
    top = {"runs", "data", "site", "build", "dist", "node_modules", "shared"} if Path(folder) == ROOT else set()
    return {n for n in names if n in top or n == "__pycache__" or n.startswith(".") or n.endswith(".egg-info")}


@pytest.mark.slow
def test_wheel_and_sdist_hold_everything(built: Built) -> None:
    name = f"clt_lightning-{clt_lightning.__version__}"
    with zipfile.ZipFile(built.wheel) as wheel:
        inside = set(wheel.namelist())
        points = wheel.read(f"{name}.dist-info/entry_points.txt").decode()
    assert "clt-lightning = clt_lightning.__main__:main" in points
    sources = [p for p in (ROOT / "clt_lightning").rglob("*") if p.is_file() and p.suffix not in (".pyc", ".md")]
    assert {p.relative_to(ROOT).as_posix() for p in sources if "__pycache__" not in p.parts} <= inside
    for config in (ROOT / "configs").rglob("*.yaml"):
        assert f"{name}.data/data/share/clt-lightning/{config.relative_to(ROOT).as_posix()}" in inside
    with tarfile.open(built.sdist) as sdist:
        packed = set(sdist.getnames())
    for path in (
        "CITATION.cff",
        "LICENSE",
        "README.md",
        "configs/quickstart.yaml",
        "tests/conftest.py",
        "docs/design.md",
        "docs/start/install.md",
        "docsite/hooks.py",
        "mkdocs.yml",
    ):
        assert f"{name}/{path}" in packed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_built_installs_and_runs_in_a_fresh_environment(built: Built, kind: str, tmp_path: Path) -> None:
    """Without a network: what the package needs is lent by this environment."""
    environment = tmp_path / "fresh"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    own = [path for path in sys.path if path.endswith("site-packages")]
    # behind its own packages, and without this repository, which an editable installation would bring
    (Path(site) / "lent.pth").write_text("".join(f"import sys; sys.path.append({path!r})\n" for path in own))
    # the setuptools that venv brings is too old to build this package from its sources; the lent one is not
    drop = ["-m", "pip", "uninstall", "--quiet", "--yes", "setuptools"]
    subprocess.run([python, *drop], capture_output=True, check=True)
    file = getattr(built, kind)
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--force"]
    done = subprocess.run([python, *install, str(file)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    def says(*words: str) -> str:
        outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ran = subprocess.run(words, cwd=tmp_path, env=outside, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr[-2000:]
        return ran.stdout

    command = str(environment / "bin" / "clt-lightning")
    assert says(command, "-V") == f"clt_lightning {clt_lightning.__version__}\n"
    where = says(str(python), "-c", "import clt_lightning; print(clt_lightning.__file__)")
    assert where.startswith(str(environment))
    assert "768" in says(command, "plan", "--config", "configs/quickstart.yaml")  # the package's own config
    head = "import clt_lightning as cl; print(cl.FrozenCLIP(pretrained='demo').d_model)"
    assert says(str(python), "-c", head).strip().endswith("96")
