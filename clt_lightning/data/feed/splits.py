"""A split that is ready to be read: its tars, their index, what its samples have, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clt_lightning.core.errors import UserError
from clt_lightning.data.tars.index import build_index
from clt_lightning.data.tars.labels import NO_LABEL, UNREADABLE
from clt_lightning.data.tars.layout import SplitFiles
from clt_lightning.data.tars.reader import BadSample, RawSample, Run, ShardReader
from clt_lightning.data.tars.scan import ShardIndex

_LOOK = 8


@dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
        files: where it lies.
        shards: the index of each tar.
        fields: which of `label`, `group`, `multi_hot`, `captions` its samples have.
        samples: how many there are; None for remote tars that nobody has counted.
    """

    files: SplitFiles
    shards: tuple[ShardIndex, ...]
    fields: frozenset[str]

    @property
    def samples(self) -> int | None:
        counts = [s.samples for s in self.shards]
        return None if any(c is None for c in counts) else sum(c or 0 for c in counts)

    @property
    def seekable(self) -> bool:
        """Whether every tar can be entered at any sample."""
        return all(s.spans is not None for s in self.shards)

    def describe(self) -> dict[str, object]:
        return {"split": self.files.found, "shards": len(self.shards), "samples": self.samples}


@dataclass(frozen=True)
class Selection:
    """Some classes of a larger set.

    Attributes:
        labels: stored label to label.
        stored_classes: classes of the larger set.
        names_from: what says so, for messages.
    """

    labels: Mapping[int, int]
    stored_classes: int
    names_from: str


def open_split(
    files: SplitFiles,
    *,
    dataset_type: str | None = None,
    counts: Sequence[int] | None = None,
    on_error: str = "raise",
    allow_pipe: bool = False,
    selection: Selection | None = None,
) -> Split:
    """Indexes the tars and finds out what the samples have.

    Args:
        files: the tars.
        dataset_type: what `dataset_type.txt` says: `multilabel` makes `npy` the label.
        counts: samples of each tar, for remote ones.
        on_error: `raise` | `skip`, for damaged tars.
        allow_pipe: whether addresses that run a shell command are allowed.
        selection: which classes are kept; None: all.

    Raises:
        UserError: a damaged tar, an empty split, or a selection that needs labels and finds none, or wrong ones.
    """
    shards = tuple(build_index(files.shards, counts=counts, on_error=on_error))
    if selection is not None:
        if on_error == "raise":
            check_labels(shards, selection.stored_classes, selection.names_from)
        shards = tuple(_select(shard, selection) for shard in shards)
    if all(s.samples == 0 for s in shards):
        chosen = " with a label of the class list" if selection is not None else ""
        where = shards[0].file.url + (" …" if len(shards) > 1 else "")
        raise UserError(f"split {files.found!r} is empty: its shards ({where}) hold no sample{chosen}")
    return Split(files, shards, _fields(shards, dataset_type, allow_pipe))


def _select(shard: ShardIndex, selection: Selection) -> ShardIndex:
    """The samples with a wanted label, and those that are bad: reading names and counts them."""
    if shard.labels is None or shard.spans is None:
        raise UserError(
            f"{shard.file.url}: picking classes by label works on local, uncompressed tars only: copy it first"
        )
    bad = (shard.labels < NO_LABEL) | (shard.labels >= selection.stored_classes)
    chosen = np.isin(shard.labels, list(selection.labels)) | bad
    chosen[[fault.position for fault in shard.faults]] = True
    return shard.take(np.flatnonzero(chosen))


def _fields(shards: Sequence[ShardIndex], dataset_type: str | None, allow_pipe: bool) -> frozenset[str]:
    suffixes = {suffix for shard in shards for suffix, _ in shard.suffixes}
    suffixes = suffixes or _first_suffixes(shards, allow_pipe)
    fields = {"label"} if "cls" in suffixes else set()
    if "npy" in suffixes and (dataset_type == "multilabel" or "cls" not in suffixes):
        fields.add("multi_hot")
    if "txt" in suffixes:
        fields.add("captions")
    if "group" in suffixes:
        fields.add("group")
    return frozenset(fields)


def _first_suffixes(shards: Sequence[ShardIndex], allow_pipe: bool) -> set[str]:
    """What the first samples have, where nothing was scanned."""
    number = next(i for i, shard in enumerate(shards) if shard.samples != 0)
    count = shards[number].samples
    reader = ShardReader(shards, allow_pipe=allow_pipe)
    seen = list(reader.read(Run(number, 0, _LOOK if count is None else min(_LOOK, count))))
    reader.close()
    found = {suffix for sample in seen if isinstance(sample, RawSample) for suffix in sample.parts}
    if not found:
        why = next((sample.message for sample in seen if isinstance(sample, BadSample)), "they have no member we read")
        raise UserError(f"the first samples of {shards[number].file.url} cannot be read: {why}")
    return found


def check_labels(shards: Sequence[ShardIndex], n_classes: int | None, names_from: str) -> None:
    """Refuses a split whose labels do not fit the class names, before anything is trained.

    Raises:
        UserError: a label is out of range; shard, sample and label are named.
    """
    for shard in shards:
        if n_classes is None or shard.labels is None:
            continue
        known = shard.labels[shard.labels > UNREADABLE]  # reading names the others
        wrong = np.flatnonzero((shard.labels >= n_classes) | ((shard.labels < NO_LABEL) & (shard.labels > UNREADABLE)))
        if len(wrong):
            i = int(wrong[0])
            shifted = known.max() == n_classes and known.min() == 1
            hint = " They seem to be counted from 1: labels begin at 0." if shifted else ""
            raise UserError(
                f"shard {shard.file.url}, sample {_key(shard, i)!r}: label {int(shard.labels[i])} is out of range, "
                f"since {names_from} has {n_classes} class names; {len(wrong)} samples of this shard are "
                f"affected.{hint} Mend the class names or the labels, or set data.init_args.on_error=skip."
            )


def _key(shard: ShardIndex, number: int) -> str:
    if shard.spans is None:
        return f"number {number}"
    reader = ShardReader([replace(shard)])
    sample = next(iter(reader.read(Run(0, number, number + 1))))
    reader.close()
    return sample.where if isinstance(sample, BadSample) else sample.key
