"""Prompts and the zero-shot head, against open_clip's own builder."""

from __future__ import annotations

import open_clip
import pytest
import torch

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.clip.prompts import fill
from clt_lightning.backbone.clip.words import WordTokenizer
from clt_lightning.core.errors import UserError

from .tiny import Maker

NAMES = ["red cat", "blue cat", "big dog", "small dog", "the photo"]
TEMPLATES = ["a photo of a {c}", "a {c}", "a drawing of the {c}"]


@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_the_head_is_open_clips(clip: FrozenCLIP, batch_size: int) -> None:
    functions = [lambda c, t=t: t.replace("{c}", c) for t in TEMPLATES]
    expected = open_clip.build_zero_shot_classifier(clip.model, clip.tokenizer, NAMES, functions)
    head = clip.zero_shot_head(NAMES, TEMPLATES, batch_size=batch_size)
    assert head.shape == (24, 5)
    torch.testing.assert_close(head, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.norm(dim=0), torch.ones(5))
    torch.testing.assert_close(clip.zero_shot_head(NAMES, functions), head, rtol=1e-5, atol=1e-6)


def test_bf16_heads_are_fp32_and_close(make_clip: Maker) -> None:
    exact, rough = make_clip().zero_shot_head(NAMES, TEMPLATES), make_clip("bf16").zero_shot_head(NAMES, TEMPLATES)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.norm(dim=0), torch.ones(5))
    assert (exact * rough).sum(0).min() > 0.99


def test_logits_carry_the_factor_100(clip: FrozenCLIP, images: torch.Tensor) -> None:
    head, embeddings = clip.zero_shot_head(NAMES, TEMPLATES), clip.encode_image(images)
    torch.testing.assert_close(clip.logits(embeddings, head), 100 * embeddings @ head)
    assert clip.logits(embeddings.bfloat16(), head).dtype == torch.float32


def test_tokens_and_texts_embed_alike(clip: FrozenCLIP) -> None:
    assert torch.equal(clip.encode_text(NAMES), clip.encode_text(clip.tokenizer(NAMES)))


@pytest.mark.parametrize("template", ["a photo of a {c}.", "a photo of a {}.", "a photo of a {class}."])
def test_every_placeholder(template: str) -> None:
    assert fill(template, "cat {x}") == "a photo of a cat {x}."


def test_templates_without_a_place_are_named_before_any_work(clip: FrozenCLIP) -> None:
    with pytest.raises(UserError, match="'a photo of a cat'"):
        clip.zero_shot_head(NAMES, ["a {c}", "a photo of a cat"])


def test_empty_or_misshapen_lists(clip: FrozenCLIP) -> None:
    for names, templates, words in [([], TEMPLATES, "classnames is empty"), (NAMES, [], "templates is empty")]:
        with pytest.raises(UserError, match=words):
            clip.zero_shot_head(names, templates)
    with pytest.raises(UserError, match="templates must be a list"):
        clip.zero_shot_head(NAMES, "a {c}")


def test_the_word_tokenizer() -> None:
    tokenizer = WordTokenizer.from_texts(["a red, red cat", "A dog"], context_length=6)
    assert tokenizer.words == ["<pad>", "<start>", "<unknown>", "a", "cat", "dog", "red", "<end>"]
    assert tokenizer("A RED dog!").tolist() == [[1, 3, 6, 5, 7, 0]]
    assert tokenizer(["a zebra", "a a a a a a a"]).tolist() == [[1, 3, 2, 7, 0, 0], [1, 3, 3, 3, 3, 7]]
    # open_clip pools where the id is largest: that must be the end of the text
    assert tokenizer(["a red cat", "dog"]).argmax(1).tolist() == [4, 2]
