"""What makes a zero-shot head say little is said; long embeddings show how far they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch

from clt_lightning.analysis.names import embed_words, known_words, read_words
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.clip.tokenizer import doubts
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress

TEMPLATES = ["a photo of a {c}", "the {c}"]


@pytest.fixture(scope="module")
def demo() -> FrozenCLIP:
    return FrozenCLIP(pretrained="demo")


def test_a_good_head_is_made_without_a_word(demo: FrozenCLIP) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo.zero_shot_head(["red circle", "blue square", "green star"], ["a {c}", "the {c}"])
    assert demo.zero_shot_doubts(["red circle", "blue square"], ["a {c}"]) == []


@pytest.mark.parametrize("names", [["猫", "犬", "鳥"], ["zebra", "gnu", "yak"], ["Löwe", "löwe", "LÖWE"], ["!", "?"]])
def test_all_names_alike(demo: FrozenCLIP, names: list[str]) -> None:
    with pytest.warns(
        UserWarning, match=rf"all {len(names)} class names \('{names[0][0]}.*one and the same text.*guesses"
    ):
        head = demo.zero_shot_head(names, ["a {c}"])
    assert torch.equal(head[:, :1].expand_as(head), head)


def test_some_names_alike_are_listed(demo: FrozenCLIP) -> None:
    (alike, unknown) = demo.zero_shot_doubts(["red circle", "猫", "blue square", "犬", "Red  CIRCLE"], ["a {c}"])
    assert "4 of 5 class names are the same text" in alike
    assert "'red circle' = 'Red  CIRCLE'" in alike
    assert "'猫' = '犬'" in alike
    assert "2 of 5 class names hold words that this CLIP's vocabulary does not know: '猫', '犬'" in unknown


def test_one_unknown_word_is_named(demo: FrozenCLIP) -> None:
    (found,) = demo.zero_shot_doubts(["red circle", "red zebra"], ["a {c}"])
    assert "1 of 2 class names hold words" in found
    assert "'red zebra'" in found


def test_names_cut_off_at_the_same_place() -> None:
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    long = "very " * 80
    (found,) = doubts([f"{long} cat", f"{long} dog", "cat"], ["a {c}"], tokenizer)
    assert "2 of 3 class names" in found
    assert doubts(["猫", "犬", "dog"], ["a {c}"], tokenizer) == []  # its byte pairs know every script


@pytest.mark.parametrize("template", ["a photo", lambda name: "a photo"])
def test_templates_without_the_name(template: str | Callable[[str], str]) -> None:
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    if isinstance(template, str):
        with pytest.raises(UserError, match="no place for the class name"):
            doubts(["a", "b"], [template], tokenizer)
    else:
        assert "all 2 class names" in doubts(["a", "b"], [template], tokenizer)[0]


def test_random_weights_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = open_clip.get_model_config("ViT-B-32")
    for part in ("vision_cfg", "text_cfg"):
        config[part] |= {"width": 64, "layers": 1, "heads": 1}
    config["vision_cfg"].pop("heads")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Small", config)
    clip = FrozenCLIP("Small", None)
    assert clip.has_random_weights
    with pytest.warns(
        UserWarning, match=r"random weights \(pretrained is null\): its zero-shot predictions are guesses"
    ):
        clip.zero_shot_head(["cat", "dog"], TEMPLATES)


def test_long_embeddings_show_how_far_they_are(
    demo: FrozenCLIP, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Progress, "shortest", 0.0)
    demo.zero_shot_head(["red circle", "blue square"] * 50, ["a {c}"], batch_size=10)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zero-shot head")]
    assert any("of 100 classes" in line for line in lines)
    assert len(lines) > 5
    embed_words(demo, ["red", "blue"] * 1000)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("words to name features by")]
    assert any("of 2,000 words" in line for line in lines)
    demo.zero_shot_head(["red circle", "blue square"] * 50, ["a {c}"], progress=False)
    assert capsys.readouterr().err == ""


def test_a_users_words_that_are_left_out_are_said(demo: FrozenCLIP, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffred\r\n\r\nzebra\r\nBlue\r\nred\r\n猫\r\n".encode())
    words = read_words(str(path))
    assert words == ["red", "zebra", "Blue", "猫"]
    with pytest.warns(UserWarning, match=r"features\.words: 2 of the 4 in .*words\.txt are left out.*zebra, 猫"):
        assert known_words(demo, words, str(path)) == ["red", "Blue"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert known_words(demo, words) == ["red", "Blue"]


def test_words_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"cat\nl\xf6we\n")
    (tmp_path / "empty").write_text("\n \n")
    for name, words in (("none", "cannot be read"), ("latin", "line 2: byte 0xf6"), ("empty", "holds no word")):
        with pytest.raises(UserError, match=words):
            read_words(str(tmp_path / name))
