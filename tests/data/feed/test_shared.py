"""Loaders that read the same, read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clt_lightning.data import WebImages
from clt_lightning.data.feed.loader import TrainLoader, Workers
from clt_lightning.data.feed.shared import SharedPackets


def loader(root: Path, transform: Any, seed: int = 0) -> TrainLoader:
    data = WebImages(root=str(root), batch_size=16, num_workers=0, seed=seed)
    data.transform = transform
    return data.train_dataloader()


def test_what_is_equal_is_read_once(demo_tars: Path, monkeypatch: Any) -> None:
    from clt_lightning.backbone.clip import FrozenCLIP

    read = []
    whole = Workers.loader

    def counted(self: Workers, batches: Any) -> Any:
        read.append(1)
        return whole(self, batches)

    monkeypatch.setattr(Workers, "loader", counted)
    clip = FrozenCLIP(pretrained="demo")
    expected = [batch["image"] for batch, _ in zip(loader(demo_tars, clip.preprocess), range(3))]
    read.clear()
    packets = SharedPackets(3)
    loaders = [loader(demo_tars, clip.preprocess) for _ in range(3)]
    for each in loaders:
        each.shared = packets
    found = [[batch["image"] for batch, _ in zip(each, range(3))] for each in loaders]
    assert len(read) == 1
    for images in found:
        assert all(map(torch.equal, images, expected))
    other = loader(demo_tars, clip.preprocess, seed=1)
    other.shared = packets
    assert not torch.equal(next(iter(other))["image"], expected[0])
    assert len(read) == 2


def test_what_cannot_be_compared_is_read_by_each() -> None:
    read = []

    def some() -> list[int]:
        read.append(1)
        return [1, 2]

    packets = SharedPackets(2)
    for _ in range(2):
        assert list(packets.of(lambda: 0, some)) == [1, 2]
    assert len(read) == 2


def test_nothing_is_kept_for_a_consumer_that_has_ended() -> None:
    packets = SharedPackets(3)
    first, second = (packets.of("same", lambda: range(5)) for _ in range(2))
    packets.without_one()
    assert not packets._copies
    assert list(first) == list(second) == list(range(5))
    packets.of("other", lambda: range(5))
    assert len(packets._copies) == 1
    packets.of("other", lambda: range(5))
    assert not packets._copies
