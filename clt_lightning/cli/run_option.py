"""`--run FOLDER` for validate, test and predict: the config and the weights of a finished run."""

from __future__ import annotations

import re
from pathlib import Path

from clt_lightning.errors import UserError


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
    number = re.fullmatch(r"version_(\d+)", folder.resolve().name)
    if number is None or not (folder / "config.yaml").is_file():
        raise UserError(f"--run {folder} is not a run's folder: it is named version_<n> and holds config.yaml")
    place = folder.resolve()
    expanded = [words[0], "--config", str(place / "config.yaml")]
    expanded += ["--runs_dir", str(place.parent.parent), "--name", place.parent.name, "--version", number[1]]
    if not any(word == "--ckpt_path" or word.startswith("--ckpt_path=") for word in rest):
        expanded += ["--ckpt_path", str(newest_checkpoint(place))]
    return expanded + rest, True


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
        raise UserError(f"--run {folder}: checkpoints/ holds no checkpoint; name one with --ckpt_path")
    return others[-1]
