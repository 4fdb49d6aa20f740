"""Names for features: the classes and words whose CLIP text embedding is nearest."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.clip import FrozenCLIP
from clt_lightning.clip.words import WordTokenizer, split_words
from clt_lightning.core.errors import UserError

N_NAMES = 5
WORD_TEMPLATES = ("{c}", "a photo of {c}")


def nearest_texts(direction: Tensor, texts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The texts nearest to each feature's mean image direction.

    Both sides are taken relative to their own mean: all CLIP images share a direction, all texts another one, and the
    gap between them says nothing.

    Args:
        direction: `(F, embed_dim)` unit.
        texts: `(texts, embed_dim)`; None gives padding.

    Returns:
        `(F, 5)` int32 indices (-1 padding) and float32 cosines.
    """
    index = torch.full((len(direction), N_NAMES), -1, dtype=torch.int32)
    score = torch.zeros(len(direction), N_NAMES)
    if texts is None or len(texts) < 2:
        return index, score
    wide = texts.detach().cpu().double()
    centred = F.normalize(wide - wide.mean(0), dim=-1)
    best = (direction @ centred.T).topk(min(N_NAMES, len(texts)), 1)
    index[:, : best.values.shape[1]] = best.indices.int()
    score[:, : best.values.shape[1]] = best.values.float()
    return index, score


def read_words(path: str | Path | None) -> list[str]:
    """Words to name features by: a file's lines, or the package's own list.

    Raises:
        UserError: no such file, or an empty one.
    """
    if path is None:
        text = (files("clt_lightning.analysis") / "words.txt").read_text(encoding="utf-8")
    else:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"features.words: {path!r} cannot be read ({error.strerror})") from error
    words = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not words:
        raise UserError(f"features.words: {path!r} holds no word")
    return words


def known_words(clip: FrozenCLIP, words: Sequence[str]) -> list[str]:
    """The words that the text tower can read: a small vocabulary (the demo's) does not have them all."""
    tokenizer = clip.tokenizer
    if not isinstance(tokenizer, WordTokenizer):
        return list(words)
    vocabulary = set(tokenizer.words)
    return [word for word in words if split_words(word) and set(split_words(word)) <= vocabulary]


def embed_words(clip: FrozenCLIP, words: Sequence[str]) -> Tensor | None:
    """`(words, embed_dim)` unit embeddings; None without words."""
    if not words:
        return None
    tokenizer = clip.tokenizer
    templates: tuple[str, ...] = WORD_TEMPLATES
    if isinstance(tokenizer, WordTokenizer):
        templates = tuple(t for t in templates if set(split_words(t.replace("{c}", ""))) <= set(tokenizer.words))
    return clip.zero_shot_head(list(words), list(templates), progress=False).T
