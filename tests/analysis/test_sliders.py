"""Sliders: the same probabilities as steering from the start, without running what comes before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clt_lightning.analysis import Edit, steer
from clt_lightning.analysis.sliders import SteeredImages
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder

from .world import CLASSES, LAYERS, TEMPLATES, Made, make_clt

IMAGES = Made(n=7).everything()[0]
MOVES = [
    [Edit(2, 3, "set", 2.0)],
    [Edit(1, 5, "add", 1.5), Edit(2, 3, "scale", 0.0)],
    [Edit(0, 1, "set", 3.0), Edit(0, 1, "scale", 0.5), Edit(2, 9, "add", 1.0)],
    [Edit(2, 3, "set", -1.0)],
]


def expected(clip: FrozenCLIP, clt: CrossLayerTranscoder, edits: list[Edit], tokens: str, base: str) -> Any:
    batch = {"image": IMAGES, "label": torch.zeros(len(IMAGES)), "key": [str(n) for n in range(len(IMAGES))]}
    return steer(clip, clt, [batch], edits, clip.zero_shot_head(CLASSES, TEMPLATES), CLASSES, tokens, base)


def together(parts: Any) -> tuple[Tensor, Tensor]:
    found = list(parts)
    assert [n for part in found for n in part.rows] == list(range(len(IMAGES)))
    return torch.cat([part.before for part in found]), torch.cat([part.after for part in found])


@pytest.mark.parametrize("base", ["original", "replaced"])
@pytest.mark.parametrize("tokens", ["all", "cls", "patch"])
@pytest.mark.parametrize("topology", ["cross_layer", "per_layer"])
def test_the_numbers_of_steering(clip: FrozenCLIP, topology: str, tokens: str, base: str) -> None:
    clt = make_clt(topology)
    images = SteeredImages(clip, clt, clip.zero_shot_head(CLASSES, TEMPLATES), IMAGES.split(3))
    assert len(images) == len(IMAGES)
    for edits in [*MOVES, MOVES[0]]:
        before, after = together(images.steer(edits, tokens, base))
        wanted = expected(clip, clt, edits, tokens, base)
        assert torch.allclose(before, wanted.before, atol=1e-6)
        assert torch.allclose(after, wanted.after, atol=1e-6)
    before, after = together(images.steer([], tokens, base))
    assert torch.equal(before, after)


def test_only_the_rest_of_the_tower_runs(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    images = SteeredImages(clip, clt, clip.zero_shot_head(CLASSES, TEMPLATES), [IMAGES])
    list(images.steer([Edit(2, 3, "set", 1.0)]))
    ran: list[int] = []
    hooks = [
        block.register_forward_pre_hook(lambda module, args, layer=layer: ran.append(layer))
        for layer, block in enumerate(clip.blocks)
    ]
    try:
        list(images.steer([Edit(2, 3, "set", 2.0)]))
        assert ran == [2]
        ran.clear()
        list(images.steer([Edit(1, 3, "set", 2.0)]))  # another first layer: up to there once, then the rest
        assert ran == [0, 1, 2]
        ran.clear()
        list(images.steer([Edit(1, 3, "set", 2.5), Edit(2, 0, "add", 1.0)]))
        assert ran == [1, 2]
    finally:
        for hook in hooks:
            hook.remove()


def test_two_questions_at_once_do_not_mix(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    images = SteeredImages(clip, clt, clip.zero_shot_head(CLASSES, TEMPLATES), IMAGES.split(2))
    late, early = images.steer(MOVES[0]), images.steer(MOVES[1])
    pairs = [(next(late), next(early)) for _ in range(4)]
    for n, edits in enumerate(MOVES[:2]):
        after = torch.cat([pair[n].after for pair in pairs])
        assert torch.allclose(after, expected(clip, clt, edits, "all", "original").after, atol=1e-6)


@pytest.mark.parametrize(
    ("edits", "tokens", "base", "message"),
    [
        ([Edit(LAYERS, 0, "set", 1.0)], "all", "original", "does not exist"),
        ([Edit(0, 0, "set", float("inf"))], "all", "original", "finite"),
        ([Edit(0, 0, "set", 1.0)], "some", "original", "cls, register, patch, all"),
        ([Edit(0, 0, "set", 1.0)], "all", "both", "original or replaced"),
        ([], "all", "both", "original or replaced"),
    ],
)
def test_what_cannot_be_done(
    clip: FrozenCLIP, clt: CrossLayerTranscoder, edits: list[Edit], tokens: str, base: str, message: str
) -> None:
    images = SteeredImages(clip, clt, clip.zero_shot_head(CLASSES, TEMPLATES), [IMAGES])
    with pytest.raises(UserError, match=message):
        list(images.steer(edits, tokens, base))
