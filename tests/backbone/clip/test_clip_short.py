"""A text tower that is run as far as the longest text goes gives the embeddings of one that is run whole."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.clip.short import encode_tokens

TEXTS = ["a drawing of a red circle.", "a cat", "a much longer description of a rather small green square on top"]
VISION = {"layers": 1, "width": 16, "head_width": 8, "image_size": 16, "patch_size": 8}
TEXT = {"context_length": 24, "vocab_size": 90, "width": 16, "heads": 2, "layers": 2}


class Positions:
    """Counts the positions that a model's token embedding is asked for."""

    def __init__(self, embedding: nn.Module) -> None:
        self.seen: list[int] = []
        embedding.register_forward_hook(lambda m, args, out: self.seen.append(args[0].shape[1]))


def built(custom: bool, **text: Any) -> nn.Module:
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model: nn.Module = kind(embed_dim=12, vision_cfg=VISION, text_cfg={**TEXT, **text})
    return model.eval().requires_grad_(False).double()


def tokens() -> Tensor:
    """Three texts: start 88, words, end 89, padding."""
    found = torch.zeros(3, 24, dtype=torch.int64)
    for row, length in enumerate((4, 7, 2)):
        found[row, : length + 2] = torch.tensor([88, *range(5, 5 + length), 89])
    return found


@pytest.mark.parametrize("custom", [False, True], ids=["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ({}, 9),
        ({"pool_type": "eos", "eos_id": 89}, 9),
        ({"pool_type": "last"}, 24),
        ({"no_causal_mask": True}, 24),
    ],
    ids=["argmax", "eos", "last", "not causal"],
)
def test_equal_to_the_whole_tower(custom: bool, text: dict[str, Any], positions: int) -> None:
    model: Any = built(custom, **text)
    if model.text_pool_type != text.get("pool_type", "argmax") if not custom else False:
        pytest.fail("the architecture is not the one that was asked for")
    counted = Positions(model.text.token_embedding if custom else model.token_embedding)
    whole = model.encode_text(tokens())
    ours = encode_tokens(model, tokens())
    assert counted.seen == [24, positions]
    torch.testing.assert_close(ours, whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.encode_text(tokens()), whole, rtol=0, atol=0)  # nothing stays cut


def test_a_class_token_at_the_end_is_seen() -> None:
    model = built(True, embed_cls=True, output_tokens=False)
    torch.testing.assert_close(encode_tokens(model, tokens()), model.encode_text(tokens()), rtol=0, atol=0)  # type: ignore[operator]


def test_the_demos_prompts() -> None:
    clip = FrozenCLIP(pretrained="demo")
    counted = Positions(getattr(clip.model, "text", clip.model).token_embedding)
    ours = clip.encode_text(TEXTS)
    read = clip.tokenizer(TEXTS)
    whole = nn.functional.normalize(clip.model.encode_text(read), dim=-1)
    assert counted.seen[0] == 1 + int(read.argmax(1).max())
    assert counted.seen[0] < counted.seen[1]
    torch.testing.assert_close(ours, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(clip.encode_text(TEXTS[1:2]), ours[1:2], rtol=1e-6, atol=1e-6)
