"""A tokenizer with a vocabulary of whole words, for text towers too small for CLIP's 49,408 byte pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"


class WordTokenizer:
    """Lower-cases, splits into words, and looks each one up.

    The call is that of open_clip's tokenizers. `<end>` has the largest id, since open_clip's text tower pools at the
    position of the largest (`pool_type: argmax`).

    Args:
        words: the vocabulary; ids are positions in this list. Holds `<pad>` first and `<end>` last.
        context_length: tokens of a text; longer ones are cut, `<end>` stays.
    """

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        assert (words[0], words[-1]) == (PAD, END), "the vocabulary must begin with <pad> and end with <end>"
        self.words = list(words)
        self.context_length = context_length
        self._ids = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def from_texts(cls, texts: Sequence[str], context_length: int) -> WordTokenizer:
        """Make a vocabulary of all words in some texts, in alphabetical order."""
        known = sorted({word for text in texts for word in split_words(text)})
        return cls([PAD, START, UNKNOWN, *known, END], context_length)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.words)

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Texts -> int64 `(texts, context_length)`, padded with 0."""
        length = context_length or self.context_length
        texts = [texts] if isinstance(texts, str) else texts
        tokens = torch.zeros(len(texts), length, dtype=torch.long)
        unknown = self._ids[UNKNOWN]
        for row, text in zip(tokens, texts):
            ids = [self._ids.get(word, unknown) for word in split_words(text)][: length - 2]
            row[: len(ids) + 2] = torch.tensor([self._ids[START], *ids, self._ids[END]])
        return tokens


def split_words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())
