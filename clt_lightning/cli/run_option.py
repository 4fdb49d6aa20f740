"""`--run FOLDER` and `--ckpt_path last|best` for validate, test and predict: config and weights of a finished run."""

from __future__ import annotations

from pathlib import Path

from clt_lightning.core.errors import UserError
from clt_lightning.runs.checkpoint_io import read_checkpoint
from clt_lightning.runs.folder import RunFolder, find_run, newest_to_go_on


def expand_run(words: list[str]) -> tuple[list[str], bool]:
    """Put a run's own config, place and newest checkpoint in the place of `--run FOLDER`.

    Args:
        words: the command and its options; options given beside `--run` win over the run's own.

    Returns:
        the words to parse, and whether a run was named.

    Raises:
        UserError: the folder is no run, or holds no checkpoint.
    """
    found = [i for i, word in enumerate(words) if word == "--run" or word.startswith("--run=")]
    if not found or words[0] not in ("validate", "test", "predict"):
        return words, False
    if len(found) > 1:
        raise UserError("--run is given more than once")
    at = found[0]
    if words[at] == "--run":
        if at + 1 >= len(words):
            raise UserError("--run needs a folder, such as runs/quickstart/version_0")
        folder, rest = Path(words[at + 1]), words[1:at] + words[at + 2 :]
    else:
        folder, rest = Path(words[at].partition("=")[2]), words[1:at] + words[at + 1 :]
    run = find_run(folder)
    place = run.path.resolve()
    number = RunFolder(place).version
    if number is None or not run.config.is_file():
        raise UserError(f"--run {folder} is not a run's folder: it is named version_<n> and holds config.yaml")
    expanded = [words[0], "--config", str(place / "config.yaml")]
    expanded += ["--runs_dir", str(place.parent.parent), "--name", place.parent.name, "--version", str(number)]
    if not any(word == "--ckpt_path" or word.startswith("--ckpt_path=") for word in rest):
        expanded += ["--ckpt_path", str(newest_checkpoint(place))]
    return expanded + rest, True


def named_checkpoint(name: str, root: Path, version: int | None = None) -> Path:
    """The file that `--ckpt_path last` or `best` means where nothing was trained in the same process.

    Args:
        name: `last` or `best`.
        root: `<runs_dir>/<name>`.
        version: version of the run; None takes the newest that has a checkpoint.

    Raises:
        UserError: there is no such run or checkpoint.
    """
    run = newest_to_go_on(root) if version is None else RunFolder(root / f"version_{version}")
    if run is None:
        raise UserError(
            f"--ckpt_path {name}: {root} holds no run with a checkpoint; name the run's folder with --run, or the file"
        )
    return newest_checkpoint(run.path) if name == "last" else best_checkpoint(run.path)


def best_checkpoint(folder: Path) -> Path:
    """The best checkpoint of a run, as its last one remembers it.

    Raises:
        UserError: there is none, or several and nobody knows which.
    """
    checkpoints = folder / "checkpoints"
    found = sorted(checkpoints.glob("best-step*.ckpt"))
    if len(found) > 1:
        content = read_checkpoint(newest_checkpoint(folder))
        states = [s for s in content.get("callbacks", {}).values() if isinstance(s, dict)]
        names = {Path(s["best_model_path"]).name for s in states if s.get("best_model_path")}
        found = [path for path in found if path.name in names] or found
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none"
        raise UserError(f"--ckpt_path best: {checkpoints} has no single best checkpoint ({there}); name the file")
    return found[0]


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint of a run's last step.

    Raises:
        UserError: there is none.
    """
    checkpoints = folder / "checkpoints"
    last = checkpoints / "last.ckpt"
    if last.is_file():
        return last
    others = sorted(checkpoints.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not others:
        raise UserError(f"{checkpoints} holds no checkpoint; name one with --ckpt_path")
    return others[-1]
