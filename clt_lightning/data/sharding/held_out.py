"""Part of the training samples as a split of its own: the same share of every class, by the samples' names alone."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence

from clt_lightning.core.errors import UserError
from clt_lightning.data.sharding.writer import Item

VAL_FRACTION = 0.05


def fraction(text: str) -> float:
    """A share on the command line.

    Raises:
        argparse.ArgumentTypeError: it is no number, or not at least 0 and below 1.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a number, at least 0 and below 1, but is {text}")
    return value


def with_val(splits: Mapping[str, Sequence[Item]], fraction: float | None) -> dict[str, Sequence[Item]]:
    """The splits with a `val` held out of `train`, where the source has none; says how many samples that takes.

    Args:
        splits: the source's own.
        fraction: share of the training samples; 0 holds out none; None: `VAL_FRACTION`, where there is no `val`.

    Raises:
        UserError: a share is asked for, and the source has a `val` of its own or no training samples.
    """
    return with_held_out(splits, "val", VAL_FRACTION if fraction is None else fraction, asked=fraction is not None)


def with_held_out(
    splits: Mapping[str, Sequence[Item]], name: str, fraction: float, *, asked: bool = True
) -> dict[str, Sequence[Item]]:
    """The splits with one more, held out of `train`.

    Args:
        splits: the source's own.
        name: of the new split: `val` or `test`.
        fraction: share of the training samples.
        asked: whether the user named the share; then it must be possible.

    Raises:
        UserError: it is asked for, but not possible.
    """
    train = splits.get("train", ())
    reason = f"has a {name} split of its own" if name in splits else "has fewer than two training samples"
    if fraction and asked and (name in splits or len(train) < 2):
        raise UserError(f"--{name}-fraction {fraction:g}: the source {reason}, so leave it out")
    if not fraction or name in splits or len(train) < 2:
        return dict(splits)
    chosen = held_out(train, fraction, name)
    left = [item for i, item in enumerate(train) if i not in chosen]
    groups = " of every class" if len({item.group for item in train}) > 1 else ""
    print(
        f"{name}: {len(chosen):,} of {len(train):,} training samples are held out ({100 * fraction:.3g} %{groups}; "
        f"--{name}-fraction)",
        file=sys.stderr,
    )
    made = {**splits, "train": left, name: [train[i] for i in sorted(chosen)]}
    return {split: made[split] for split in ("train", "val", "test") if split in made}


def held_out(items: Sequence[Item], fraction: float, salt: str) -> set[int]:
    """Which samples are held out: of every class its share, rounded down or up, and at least one sample in all.

    A class's samples stand in the order of a hash of their names, and the first ones are taken. So the choice depends
    neither on the source's order nor on the machine, and samples that are added later leave nearly all others where
    they were: each of them can at most push one of its own class over the edge.

    Args:
        items: the samples, two or more.
        fraction: the share, above 0 and below 1.
        salt: the new split's name: another one is another choice.

    Returns:
        Positions in `items`.
    """
    ranks: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for i, item in enumerate(items):
        ranks[item.group].append((_hash(salt, item.name), i))
    # where a class's share is no whole number, its name decides whether it is rounded up
    shares: list[tuple[float, int]] = []
    for group, ordered in ranks.items():
        start = int.from_bytes(_hash(salt, group)[:6]) / 2**48
        shares += [((rank + start) / len(ordered), i) for rank, (_, i) in enumerate(sorted(ordered))]
    chosen = {i for share, i in shares if share < fraction}
    if not chosen:
        chosen = {min(shares)[1]}
    elif len(chosen) == len(items):
        chosen.discard(max(shares)[1])
    return chosen


def _hash(salt: str, name: str) -> bytes:
    return hashlib.blake2b(f"{salt}\0{name}".encode(errors="surrogateescape"), digest_size=16).digest()
