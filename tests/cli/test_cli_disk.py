"""Commands that meet a full or a read-only disk: one message, exit code 2, and nothing half-written.

The disks are real ones: small file systems in memory, which only root may mount.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_errors, disk_reason, whole_file, whole_folder, write_text
from clt_lightning.transcoder import CrossLayerTranscoder, JumpReLU

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


class Disk:
    """A file system of its own.

    Attributes:
        root: where it is mounted.
    """

    def __init__(self, root: Path, megabytes: int) -> None:
        self.root = root
        root.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", root], capture_output=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")

    def fill(self, leave: int = 0) -> None:
        """Leaves so many kilobytes free."""
        free = shutil.disk_usage(self.root).free - leave * 1024
        with (self.root / "filler").open("wb") as file:
            file.write(b"x" * max(0, free))

    def read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.root], check=True)

    def content(self) -> dict[str, bytes | None]:
        """Every file and folder, but for what the test itself put there."""
        paths = [path for path in self.root.rglob("*") if path.name != "filler"]
        return {str(path.relative_to(self.root)): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk", 24)
    yield made
    subprocess.run(["umount", "-l", made.root], check=True)


@pytest.fixture(scope="module")
def run(demo_tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, tested and with a transcoder that circuit-tracer's files can hold."""
    runs = tmp_path_factory.mktemp("runs")
    data = {"root": demo_tars, "n_train": 256, "n_test": 75, "world": 5, "batch_size": 16, "num_workers": 0}
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--figures.every=0"]
    small = ["--model.transcoder.n_features=96", "--model.transcoder.skip=false", "--model.tokens.statistics=1000"]
    steps = ["--trainer.max_steps=2", "--model.schedule.warmup_steps=0", "--trainer.limit_val_batches=0"]
    tars = [f"--data.init_args.{key}={value}" for key, value in data.items()]
    main(["fit", f"--config={CONFIG}", *tars, *small, *steps, *quiet, f"--runs_dir={runs}"])
    folder = runs / "quickstart" / "version_0"
    cheap = ["--evaluate.population.images=16", "--evaluate.cascade.firsts=[0]", "--evaluate.cascade.singles=false"]
    off = [f"--evaluate.{part}.enabled=false" for part in ("faithfulness", "effects")]
    main(["test", "--run", str(folder), "--evaluate.bootstrap=10", *cheap, *off])
    results = json.loads((folder / "results.json").read_text())
    # figures take time, and are files like others
    results["evaluation"]["test"] |= {"zero_shot": None, "contributions": {}, "population": None}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that fails says on standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in "\n".join(lines)
    return errors[0]


@pytest.mark.parametrize("leave", [0, 300])
@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["report", "--no_pictures", "--queries=2", "--features=2"], "pages"),
        (["export"], "deep/exported"),
        (["export", "--format=circuit-tracer"], "deep/exported"),
        (["steer", "--set=2/5=3", "--images=4"], "deep/steer.json"),
    ],
    ids=["report", "export", "circuit-tracer", "steer"],
)
def test_a_full_disk(
    run: Path, disk: Disk, command: list[str], output: str, leave: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if command[0] == "steer":
        leave = 0  # its file is small enough to fit into what the others leave
    disk.fill(leave)
    before = disk.content()
    error = told([command[0], "--run", str(run), *command[1:], "--output", str(disk.root / output)], capsys)
    assert str(disk.root / output) in error
    assert "the disk is full" in error
    assert disk.content() == before


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["report", "--no_pictures", "--queries=2", "--features=2"], "pages"),
        (["export"], "exported"),
        (["export", "--format=circuit-tracer"], "exported"),
        (["steer", "--set=2/5=3", "--images=4"], "steer.json"),
    ],
    ids=["report", "export", "circuit-tracer", "steer"],
)
def test_a_read_only_disk(
    run: Path, disk: Disk, command: list[str], output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.read_only()
    error = told([command[0], "--run", str(run), *command[1:], "--output", str(disk.root / output)], capsys)
    assert str(disk.root / output) in error
    assert "read-only" in error


def test_what_was_there_stays_where_the_new_one_does_not_fit(
    run: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ["report", "--run", str(run), "--no_pictures", "--queries=1", "--output", str(disk.root / "pages")]
    tracer = ["export", "--run", str(run), "--format=circuit-tracer", "--output", str(disk.root / "exported")]
    main([*report, "--features=1"])
    main(tracer)
    disk.fill(100)
    before = disk.content()
    assert "disk is full" in told([*report, "--features=50"], capsys)
    assert "disk is full" in told(tracer, capsys)
    assert disk.content() == before


@pytest.mark.parametrize("state", ["full", "read-only"])
@pytest.mark.parametrize("command", ["predict", "test"])
def test_a_run_on_such_a_disk(
    run: Path, disk: Disk, command: str, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = disk.root / "quickstart" / "version_0"
    shutil.copytree(run, folder)
    disk.fill() if state == "full" else disk.read_only()
    assert state in told([command, "--run", str(folder), "--evaluate.enabled=false"], capsys)


# -- what libraries make of it -----------------------------------------------------------------------------------------


def test_every_librarys_way_of_saying_it(disk: Disk) -> None:
    import numpy as np
    import safetensors.torch

    numbers = torch.randn(10**6)

    def with_a_file(path: Path) -> None:
        with path.open("wb") as file:
            torch.save(numbers, file)

    disk.fill(64)
    for write in (
        lambda path: safetensors.torch.save_file({"a": numbers}, path),
        lambda path: torch.save(numbers, path),
        with_a_file,
        lambda path: np.savez(path.open("wb"), numbers.numpy()),
        lambda path: path.write_bytes(bytes(10**6)),
    ):
        with pytest.raises(UserError, match=r"a\.bin cannot be written: the disk (is full|took less)"):
            _write(write, disk.root / "a.bin")
    with (
        pytest.raises(UserError, match=r"copy cannot be written: the disk is full"),
        whole_folder(disk.root / "copy") as path,
    ):
        shutil.copytree(CONFIG.parents[1] / "clt_lightning", path / "package")
    assert set(disk.content()) == set()


def _write(write: object, path: Path) -> None:
    with whole_file(path) as temporary:
        write(temporary)  # type: ignore[operator]


def test_errors_that_are_not_about_the_disk_are_left_alone(tmp_path: Path) -> None:
    assert disk_reason(RuntimeError("shapes differ")) is None
    with pytest.raises(RuntimeError, match="shapes differ"), disk_errors(tmp_path):
        raise RuntimeError("shapes differ")
    # reading another file while this one is written
    elsewhere = PermissionError(13, "Permission denied", "/elsewhere/shard.tar")
    with pytest.raises(PermissionError), disk_errors(tmp_path / "report"):
        raise elsewhere
    with pytest.raises(UserError, match="no permission"), disk_errors(tmp_path / "report"):
        raise PermissionError(13, "Permission denied", str(tmp_path / "report" / "index.html"))
    with pytest.raises(UserError, match="mine"), disk_errors(tmp_path / "report"):
        raise UserError("mine")


def test_a_place_in_which_no_folder_can_be_replaced(disk: Disk) -> None:
    with pytest.raises(UserError, match="mount point"), whole_folder(disk.root):
        raise AssertionError("nothing may be written")


def test_leftovers_of_a_killed_process_of_the_same_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: 7)  # in a container it is the same every time
    (tmp_path / ".pages.7.tmp").mkdir()
    write_text(tmp_path / ".pages.7.tmp" / "half", "1")
    (tmp_path / ".pages.7.old").mkdir()
    write_text(tmp_path / ".pages.7.old" / "whole", "the only copy: it was killed between two renames")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "pages"):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]
    with whole_folder(tmp_path / "pages") as path:
        write_text(path / "new", "2")
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["new"]


def test_an_export_replaces_exports_and_nothing_else(tmp_path: Path) -> None:
    from clt_lightning.transcoder.files.circuit_tracer import save_circuit_tracer

    for layers in (3, 2):
        clt = CrossLayerTranscoder(n_layers=layers, d_model=8, n_features=16, activation=JumpReLU())
        save_circuit_tracer(clt, tmp_path / "export", {})
    assert len(list((tmp_path / "export").iterdir())) == 2 * 2 + 2  # nothing of the third layer is left
    write_text(tmp_path / "export" / "notes.txt", "mine")
    with pytest.raises(UserError, match="already holds something else"):
        save_circuit_tracer(clt, tmp_path / "export", {})
