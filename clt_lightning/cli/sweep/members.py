"""What a sweep's file says: which runs there are, and in what they differ."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clt_lightning.core.config_file import ConfigFile, read_config
from clt_lightning.core.errors import UserError

#: Keys in which the members of a sweep cannot differ, and why
_SHARED = {
    "data": "all members learn from the same batches",
    "model.backbone": "all members share one forward of the backbone",
    "model.parallel": "a sweep runs on one device",
    "seed_everything": "the order of the data depends on it: vary model.seed, the transcoder's own",
    "trainer.accelerator": "a sweep runs on one device",
    "trainer.devices": "a sweep runs on one device",
    "trainer.num_nodes": "a sweep runs on one device",
    "trainer.strategy": "a sweep runs on one device",
    "name": "the names under `runs`, or the values, name the members",
    "version": "each member takes its next free version",
    "runs_dir": "give --runs_dir beside --sweep: it holds all members",
    "ckpt_path": "give --ckpt_path last beside --sweep: each member goes on with its own",
    "config": "give --config beside --sweep: it is for all members",
}
#: Most members: each holds its weights and the optimizer's state
_MOST = 256


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        settings: its own settings, by dotted key.
        where: the file and line that name it.
    """

    name: str
    settings: Mapping[str, Any]
    where: str

    def words(self) -> list[str]:
        """The settings as options."""
        return [f"--{key}={_text(value)}" for key, value in self.settings.items()]


def read_members(path: str) -> list[Member]:
    """The members of a sweep, in the file's order: every combination of `grid`, then those under `runs`.

    Args:
        path: a YAML file with `grid`: lists of values by dotted key; `runs`: settings by name; or both.

    Raises:
        UserError: the file cannot be read or says something else, a key in which members cannot differ, or two members
            of one name.
    """
    file = read_config(path, "--sweep")
    odd = [key for key in file.content if key not in ("grid", "runs")]
    if odd or not file.content:
        what = f"{odd[0]!r} is neither" if odd else "it holds neither"
        raise UserError(
            f"{file.where((odd[0],) if odd else ())}: {what} `grid` (lists of values by key, such as "
            "model.transcoder.n_features: [768, 1536]) nor `runs` (settings by name)"
        )
    members = [*_grid(file), *_runs(file)]
    if not members:
        raise UserError(f"{file.name}: no runs: give `grid` or `runs` some values")
    if len(members) > _MOST:
        raise UserError(f"{file.where(('grid',))}: {len(members)} runs; a sweep takes {_MOST} at most")
    seen: dict[str, Member] = {}
    for member in members:
        if member.name in seen:
            raise UserError(
                f"{member.where}: two runs would be named {member.name!r}: name them yourself, under `runs`"
            )
        seen[member.name] = member
    return members


def _grid(file: ConfigFile) -> Iterator[Member]:
    grid = file.content.get("grid") or {}
    if not isinstance(grid, dict):
        raise UserError(f"{file.where(('grid',))}: `grid` holds lists of values by key, got {grid!r}")
    if not grid:
        return
    values = {}
    for key, given in grid.items():
        where = file.where(("grid", key))
        _check_key(key, where)
        if not isinstance(given, list) or not given:
            raise UserError(f"{where}: {key} needs a list of values, such as [8, 16], got {given!r}")
        values[key] = given
    names = _short(list(values))
    for chosen in itertools.product(*values.values()):
        settings = dict(zip(values, chosen))
        name = "_".join(_label(names[key], value) for key, value in settings.items())
        yield Member(name, settings, file.where(("grid", next(iter(values)))))


def _runs(file: ConfigFile) -> Iterator[Member]:
    runs = file.content.get("runs") or {}
    if not isinstance(runs, dict):
        raise UserError(f"{file.where(('runs',))}: `runs` holds settings by name, got {runs!r}")
    for name, given in runs.items():
        where = file.where(("runs", name))
        if not isinstance(name, str) or not re.fullmatch(r"[\w.+=-]*\w[\w.+=-]*", name) or _is_version(name):
            raise UserError(f"{where}: {name!r} is no name of a run: take letters, digits and . _ - + =")
        if given is not None and not isinstance(given, dict):
            raise UserError(f"{where}: {name} needs settings, such as model.transcoder.n_features: 768, got {given!r}")
        settings: dict[str, Any] = {}
        for key, value in _flat(given or {}):
            _check_key(key, where)
            twice = next((k for k in settings if f"{k}.".startswith(f"{key}.") or f"{key}.".startswith(f"{k}.")), None)
            if twice is not None:
                raise UserError(f"{where}: {name} sets {key} twice{f' (also by {twice})' if twice != key else ''}")
            settings[key] = value
        yield Member(name, settings, where)


def _check_key(key: Any, where: str) -> None:
    if not isinstance(key, str) or not key.strip("."):
        raise UserError(f"{where}: {key!r} is no key of a config")
    for shared, why in _SHARED.items():
        if key == shared or key.startswith(f"{shared}."):
            raise UserError(f"{where}: {key} cannot differ between the runs of a sweep: {why}")


def _flat(table: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys; a class with its arguments stays whole, since another class takes other arguments."""
    for key, value in table.items():
        place = f"{above}.{key}" if above else str(key)
        if isinstance(value, dict) and value and "class_path" not in value:
            yield from _flat(value, place)
        else:
            yield place, value


def _short(keys: list[str]) -> dict[str, str]:
    """For each key as much of its end as tells it from the others."""
    found = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        found[key] = next(end for end in ends if sum(f".{k}".endswith(f".{end}") for k in keys) == 1)
    return found


def _label(key: str, value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        inner = value.get("init_args") or {}
        return "-".join([str(value["class_path"]).rpartition(".")[2], *(_label(k, v) for k, v in inner.items())])
    if isinstance(value, str):  # a class alone, a topology: it says what it is
        return _plain(value.rpartition(".")[2] if value.count(".") and not value[-1].isdigit() else value)
    return _plain(f"{key}={_text(value)}")


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+=-]+", "-", text).strip("-")


def _is_version(name: str) -> bool:
    return re.fullmatch(r"version_\d+", name) is not None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
