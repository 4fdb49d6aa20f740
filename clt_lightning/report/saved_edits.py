"""Edits that were saved in a run's folder: what was changed, what came of it, and the images named otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from clt_lightning.analysis.steering import Edit, SteeringResult
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json, write_json
from clt_lightning.report.numbers import to_list
from clt_lightning.report.studies import picture_address
from clt_lightning.runs.folder import RunFolder

#: Where they lie in a run, one file each
FOLDER = "steering"
SCHEMA = 1
#: How an image came to another class: to its own one, away from it, and all others (those without a label, too)
WAYS = ("gained", "lost", "other")
#: Pictures of a way, at most, classes of an image that are told, and the side of a picture in pixels
PICTURES, TOP, SIDE = 24, 5, 128
#: What a saved edit must have
_KEYS = (
    *("run", "split", "tokens", "base", "nodes", "edits", "images", "labelled", "changed", "top1", "flips", "pictures"),
    *("classnames", "mean_before", "mean_change", "mean_change_interval"),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> str:
    """A name that can be a file's and an address's.

    Raises:
        UserError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"--save {name!r}: a name is made of up to 64 letters, digits, '-', '_' and '.'")
    return name


@dataclass
class Flips:
    """The images of another most probable class, as batches come: `steer(..., see=flips)`.

    Of each way the pictures of those are kept whose probabilities change most (by total variation).

    Args:
        pixels: a preprocessed image `(3, H, W)` back as uint8, such as `Run.pixels`.
        most: pictures of a way.

    Attributes:
        counts: images by way.
        kept: by way, the largest change first; see docs/results-schema.md.
    """

    pixels: Callable[[Tensor], Tensor]
    most: int = PICTURES
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WAYS, 0))
    kept: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {way: [] for way in WAYS})

    def __call__(self, batch: Mapping[str, Any], before: Tensor, after: Tensor) -> None:
        """Takes a batch, with its probabilities `(images, classes)` without and with the edits."""
        was, now = before.argmax(1), after.argmax(1)
        change = 0.5 * (after - before).abs().sum(1)
        labels = [-1] * len(was) if batch.get("label") is None else [int(label) for label in batch["label"]]
        for row in (was != now).nonzero()[:, 0].tolist():
            label = labels[row]
            way = "lost" if int(was[row]) == label else "gained" if int(now[row]) == label else "other"
            self.counts[way] += 1
            least = self.kept[way][-1]["change"] if len(self.kept[way]) == self.most else -1.0
            if float(change[row]) <= least:
                continue
            self.kept[way].append(
                {
                    "key": batch["key"][row],
                    "label": label,
                    "change": float(change[row]),
                    "was": int(was[row]),
                    "now": int(now[row]),
                    "classes": _classes(before[row], after[row]),
                    "picture": _picture(self.pixels(batch["image"][row].cpu())),
                }
            )
            self.kept[way].sort(key=lambda image: -image["change"])  # stable: of equal ones the first
            del self.kept[way][self.most :]


def _classes(before: Tensor, after: Tensor) -> list[list[Any]]:
    """The most probable classes without and with the edits, the most probable before first: class, before, after."""
    most = min(TOP, len(before))
    chosen = sorted({*before.topk(most).indices.tolist(), *after.topk(most).indices.tolist()})
    chosen.sort(key=lambda c: -float(before[c]))
    shown = [to_list(chances[chosen].numpy(), 6) for chances in (before, after)]
    return [list(row) for row in zip(chosen, *shown)]


def _picture(pixels: Tensor) -> str:
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture_address(np.asarray(picture))


def steering_record(
    run: Path,
    found: SteeringResult,
    edits: Sequence[Edit],
    flips: Flips,
    *,
    name: str = "",
    split: str = "test",
    tokens: str = "all",
    base: str = "original",
    nodes: Sequence[str] = (),
    keys: Sequence[str] = (),
) -> dict[str, Any]:
    """What the page *Steering* and the picture of `steer` show (docs/results-schema.md).

    Args:
        run: the run's folder.
        found: what came of the edits.
        edits: what was changed.
        flips: of the same images.
        name: what it is saved as.
        split: where the images come from.
        tokens: as of `steer`.
        base: as of `steer`.
        nodes: names of the sets that the edits come from.
        keys: the images, where they were chosen by key.
    """
    folder = RunFolder(run)
    results = read_json(folder.results) if folder.results.is_file() else {}
    return {
        "clt_steering": SCHEMA,
        "name": name,
        "run": {
            "title": folder.title,
            "started": (results.get("run") or {}).get("started"),
            "step": folder.exported_at,
        },
        "split": split,
        "tokens": tokens,
        "base": base,
        "nodes": [text for text in nodes if text],
        "keys": list(keys),
        **found.summary(edits),
        "labelled": int((found.labels >= 0).sum()),
        "flips": flips.counts,
        "pictures": flips.kept,
    }


def save_edit(run: Path, record: dict[str, Any]) -> Path:
    """Writes a record to `<run>/steering/<name>.json`; one of the same name is replaced.

    Raises:
        UserError: the name cannot be one, or the disk does not take it.
    """
    path = run / FOLDER / f"{check_name(record['name'])}.json"
    write_json(path, record, indent=None)
    return path


def saved_edits(run: Path, step: int | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The edits that were saved in a run, by name.

    Args:
        run: its folder.
        step: of the weights that are shown; None: any.

    Returns:
        The records of these weights, and the names of those of other weights.

    Raises:
        UserError: a file that is none.
    """
    found, others = [], []
    for path in sorted((run / FOLDER).glob("*.json")):
        record = read_json(path)
        missing = [key for key in _KEYS if key not in record]
        if record.get("clt_steering") != SCHEMA or missing:
            lacks = f": it lacks {missing[0]}" if record.get("clt_steering") == SCHEMA else ""
            raise UserError(f"{path}: is no edit that `steer --save` has written{lacks}; save it again, or take it out")
        known = (record.get("run") or {}).get("step")
        if step is None or known is None or known == step:
            found.append(record | {"name": path.stem})
        else:
            others.append(path.stem)
    return found, others
