"""The configs that come with the package, for an installation without its repository."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = "configs"


def shipped_folder() -> Path | None:
    """Where the configs lie: in the repository, or where an installed wheel has put them; None for neither."""
    beside = Path(__file__).resolve().parents[2] / FOLDER
    places = (beside, Path(sys.prefix) / "share" / "clt-lightning" / FOLDER)
    return next((place for place in places if (place / "quickstart.yaml").is_file()), None)


#: Options that name a config
_FILES = ("--config", "--sweep")


def with_shipped_configs(words: Sequence[str]) -> list[str]:
    """The words, with `--config configs/NAME.yaml` (or `--sweep`) pointing at the package's own file where there is
    none here.
    """
    found = []
    for before, word in zip(("", *words), words):
        option, _, value = word.partition("=")
        if option in _FILES and value:
            found.append(f"{option}={_shipped(value)}")
        else:
            found.append(_shipped(word) if before in _FILES else word)
    return found


def _shipped(name: str) -> str:
    path = Path(name)
    if path.exists() or path.is_absolute() or path.parts[:1] != (FOLDER,):
        return name
    folder = shipped_folder()
    ours = None if folder is None else folder.joinpath(*path.parts[1:])
    if ours is None or not ours.is_file():
        return name
    print(f"{name}: there is none here, the package's own is taken ({ours})", file=sys.stderr)
    return str(ours)
