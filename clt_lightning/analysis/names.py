"""Names for features: the classes and words whose CLIP text embedding is nearest."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.clip import FrozenCLIP
from clt_lightning.clip.tokenizer import unknown_words
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_text
from clt_lightning.core.paths import expand
from clt_lightning.core.say import doubt

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


def read_words(path: str | None) -> list[str]:
    """Words to name features by: a file's lines, or the package's own list.

    Raises:
        UserError: no such file, one that is not UTF-8, or an empty one.
    """
    if path is None:
        text = (files("clt_lightning.analysis") / "words.txt").read_text(encoding="utf-8")
    else:
        text = read_text(expand(path, "features.words"))
    words = list(dict.fromkeys(line.strip() for line in text.split("\n") if line.strip()))
    if not words:
        raise UserError(f"features.words: {path!r} holds no word")
    return words


def known_words(clip: FrozenCLIP, words: Sequence[str], path: str | None = None) -> list[str]:
    """The words that the text tower can read: a small vocabulary (the demo's) does not have them all.

    Args:
        clip: whose text tower.
        words: from `read_words`.
        path: the user's own file that they came from: what is left out of it is said.
    """
    unknown = dict.fromkeys(unknown_words(words, clip.tokenizer))
    if unknown and path is not None:
        shown = ", ".join(list(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
        doubt(
            f"features.words: {len(unknown)} of the {len(words)} in {path} are left out, since the vocabulary of this "
            f"CLIP's text tower does not have them: {shown}"
        )
    return [word for word in words if word not in unknown]


def embed_words(clip: FrozenCLIP, words: Sequence[str]) -> Tensor | None:
    """`(words, embed_dim)` unit embeddings; None without words."""
    if not words:
        return None
    templates = [t for t in WORD_TEMPLATES if t == "{c}" or not unknown_words([t.replace("{c}", "")], clip.tokenizer)]
    return clip.embed_names(list(words), templates, what="words to name features by", unit="words")
