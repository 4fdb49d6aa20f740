"""The embedded demo: renders of shapes and colours, written as tars and read like any other set."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_errors, write_json, write_text
from clt_lightning.data.sets.base import WebImages
from clt_lightning.data.sharding.writer import Item, Limits, write_split
from clt_lightning.data.worlds import renders
from clt_lightning.data.worlds import spurious as planted
from clt_lightning.data.worlds.spurious import Spurious

log = logging.getLogger(__name__)

_RECORD = "demo.json"
#: What every picture of a set may have in common, and what the values of the world's cues are called here
_COMMON = {"texture": ("striped", "dotted"), "background": ("sand", "water")}
_SAMPLES_PER_SHARD = 2500
_FIRST_SEED = 3_000_000  # clip/demo/train.py takes its renders from 1,000,000 and 2,000,000 on
_FIRST_VAL_SEED = 10**12  # beyond the others of every world that a 32-bit seed can name


class Demo(WebImages):
    """Labelled renders, as many as asked, from a seed.

    The tars are written on first use (about a minute for the default sizes) and found again later. Their parameters are
    recorded beside them; where `root` holds renders of other parameters, a folder in it that is named after the
    parameters is used, so nothing stale is ever read.

    Args:
        root: Folder of the tars.
        n_train: Renders in the training split.
        n_test: Renders in the test split; none of them is in the training split.
        n_val: Renders in the validation split, which are in neither of the others; null: as many as `n_test`.
        size: Side of a render in pixels.
        seed: Seed of the renders and of the reading order; null: that of `seed_everything`.
        world: Seed of the renders alone; null: as `seed`.
        texture: `striped` or `dotted`: every object has it; null: each one has one of its own, plain and shaded among
            them.
        background: `sand` or `water`: every picture has it; null: each one has one of its own.
        colours: Objects are of these colours alone, as `[red, orange]`; labels stay those of all. null: of all eight.
        spurious: A cue that goes with the class in training and validation, and is balanced in the test split, such as
            `{cue: background, strength: 0.95}`; batches then have the `group` of each image. null: none.
        batch_size: Training images per step on each rank.
        num_workers: Worker processes that read and decode, on each rank; 0 works in the main process.
        **kwargs: As in `WebImages`.
    """

    set_name = "demo"

    def __init__(
        self,
        root: str | Path = "data/demo",
        n_train: int = 20_000,
        n_test: int = 2_000,
        n_val: int | None = None,
        size: int = renders.DEFAULT_SIZE,
        seed: int | None = None,
        world: int | None = None,
        spurious: Spurious | dict[str, str | float | list[str] | None] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        texture: Literal["striped", "dotted"] | None = None,
        background: Literal["sand", "water"] | None = None,
        colours: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, seed=seed, batch_size=batch_size, num_workers=num_workers, **kwargs)
        world = self.seed if world is None else world
        n_val = n_test if n_val is None else n_val
        for name, value, least in (
            ("n_train", n_train, 1),
            ("n_test", n_test, 1),
            ("n_val", n_val, 1),
            ("size", size, 16),
            ("world", world, 0),
        ):
            if value < least:
                raise UserError(f"data.init_args.{name} must be {least} or more, but is {value}")
        self.spurious = _spurious(spurious)
        self.common = _Common(_cue(texture=texture, background=background), _colours(colours))
        if self.spurious is not None and self.common != _Common():
            named = "colours" if self.common.cue is None else self.common.cue[0]
            raise UserError(f"data.init_args: {named} and spurious cannot be set together")
        self.base = Path(root)
        self._draws = True
        self.parameters: dict[str, Any] = {
            "n_train": n_train,
            "n_val": n_val,
            "n_test": n_test,
            "size": size,
            # worlds of their own: no render is in two splits, or among those that the demo CLIP was trained on
            "render_seeds": {
                "train": _FIRST_SEED + 2 * world,
                "val": _FIRST_VAL_SEED + world,
                "test": _FIRST_SEED + 2 * world + 1,
            },
            "renders_sha256": hashlib.sha256(Path(renders.__file__).read_bytes()).hexdigest(),
        }
        given = {"texture": texture, "background": background, "colours": colours}
        self.parameters |= {name: value for name, value in given.items() if value is not None}
        if self.spurious is not None:
            self.parameters["spurious"] = json.loads(json.dumps(asdict(self.spurious)))
            self.parameters["spurious_sha256"] = hashlib.sha256(Path(planted.__file__).read_bytes()).hexdigest()

    def check_root(self) -> None:
        """Nothing to check: what is not there is written."""

    def require_root(self) -> None:
        """As in `WebImages`; and no render is drawn from now on.

        Raises:
            UserError: the renders are not there any more.
        """
        self._draws = False
        self.prepare_data()

    def prepare_data(self) -> None:
        """Writes the renders, if they are not there; several processes may call this at once.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        if self._complete(self._folder()):
            return
        if not self._draws:
            raise UserError(
                f"the run's renders are not in {self._folder()} any more: say where they are with "
                f"--data.init_args.root=FOLDER (the same folder has them drawn again)"
            )
        with _locked(self.base):
            folder = self._folder()
            if self._complete(folder):
                return
            counts = " + ".join(f"{count:,}" for count in self._sizes().values())
            log.info("demo: rendering %s images into %s", counts, folder)
            write_json(folder / _RECORD, self.parameters)
            names = renders.CLASSNAMES if self.spurious is None else self.spurious.classnames
            write_text(folder / "classnames.txt", "\n".join(names) + "\n")
            if self.spurious is not None:
                write_text(folder / "groupnames.txt", "\n".join(self.spurious.groupnames) + "\n")
            write_text(folder / "zeroshot_classification_templates.txt", "\n".join(renders.TEMPLATES) + "\n")
            for split, count in self._sizes().items():
                seed, size = self.parameters["render_seeds"][split], self.parameters["size"]
                draw = functools.partial(_draw, self.spurious, self.common, split, seed, size)
                items = [Item(f"{split}-{i}", functools.partial(draw, i)) for i in range(count)]
                write_split(folder / split, items, limits=Limits(_SAMPLES_PER_SHARD), settings=self.parameters)

    def setup(self, stage: str | None = None) -> None:
        """As in `WebImages`; writes the renders first where `prepare_data` was not called."""
        self.prepare_data()
        super().setup(stage)

    def _read_names(self) -> None:
        if not self._names_read:
            self.root = str(self._folder())
        super()._read_names()

    def describe(self) -> dict[str, Any]:
        """As in `WebImages`, with the renders' parameters."""
        return super().describe() | {"renders": dict(self.parameters)}

    def _sizes(self) -> dict[str, int]:
        return {split: self.parameters[f"n_{split}"] for split in ("train", "val", "test")}

    def _folder(self) -> Path:
        """`base`, unless it holds something else; then a folder in it named after the parameters."""
        recorded = _read_record(self.base / _RECORD)
        taken = recorded is not None or any((self.base / s).exists() for s in ("train", "test", "val"))
        if recorded == self.parameters or not taken:
            return self.base
        digest = hashlib.sha256(json.dumps(self.parameters, sort_keys=True).encode()).hexdigest()[:10]
        return self.base / f"renders-{digest}"

    def _complete(self, folder: Path) -> bool:
        done = all((folder / split / "nshards.txt").is_file() for split in self._sizes())
        return done and _read_record(folder / _RECORD) == self.parameters


@dataclass(frozen=True)
class _Common:
    """What the pictures of a set have in common.

    Attributes:
        cue: one of the world's cues and its value; None: none.
        labels: classes that objects are of; None: all.
    """

    cue: tuple[str, int] | None = None
    labels: tuple[int, ...] | None = None

    def render(self, seed: int, index: int, size: int) -> renders.Render:
        label = None
        if self.labels is not None:
            label = self.labels[int(np.random.default_rng([seed, index, 3]).integers(len(self.labels)))]
        return renders.render(seed, index, size=size, label=label, cue=self.cue)


def _cue(**given: str | None) -> tuple[str, int] | None:
    found = {name: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        if value not in _COMMON[name]:
            raise UserError(f"data.init_args.{name} must be {' or '.join(_COMMON[name])}, but is {value!r}")
    if len(found) > 1:
        raise UserError(f"data.init_args: {' and '.join(found)} cannot be set together")
    return next(((name, _COMMON[name].index(value)) for name, value in found.items()), None)


def _colours(given: list[str] | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    known = list(renders.COLOURS)
    if isinstance(given, str) or not given or len(set(given)) < len(given) or not set(given) <= set(known):
        raise UserError(f"data.init_args.colours must be a list out of {', '.join(known)}, each once, but is {given!r}")
    return tuple(i for i, name in enumerate(renders.CLASSNAMES) if name.split()[0] in given)


def _draw(
    spurious: Spurious | None, common: _Common, split: str, seed: int, size: int, index: int
) -> Mapping[str, bytes]:
    group = None
    if spurious is None:
        made = common.render(seed, index, size)
        label = made.label
    else:
        made, label, group = spurious.render(split, seed, index, size=size)
    png = io.BytesIO()
    made.image.save(png, "PNG", compress_level=1)
    parts = {"png": png.getvalue(), "cls": b"%d" % label, "txt": "\n".join(made.captions).encode()}
    return parts if group is None else {**parts, "group": b"%d" % group}


def _spurious(given: Any) -> Spurious | None:
    if given is None or isinstance(given, Spurious):
        return given
    known = [field.name for field in fields(Spurious)]
    if not isinstance(given, Mapping):
        raise UserError(f"data.init_args.spurious must be a table of {', '.join(known)}, but is {given!r}")
    strange = [str(key) for key in given if key not in known]
    if strange:
        raise UserError(f"data.init_args.spurious has no key {strange[0]!r}; there are: {', '.join(known)}")
    return Spurious(**given)


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}


@contextmanager
def _locked(base: Path) -> Iterator[None]:
    with disk_errors(base, "Set data.init_args.root to a folder for the demo's renders"):
        base.mkdir(parents=True, exist_ok=True)
        lock = (base / ".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
