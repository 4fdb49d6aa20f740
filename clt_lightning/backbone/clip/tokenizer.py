"""How a model's text tower reads texts, and what that says about class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import open_clip
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from torch import Tensor

from clt_lightning.backbone.clip.prompts import Template, fill
from clt_lightning.backbone.clip.source import Source
from clt_lightning.backbone.clip.words import WordTokenizer, split_words
from clt_lightning.core.errors import UserError
from clt_lightning.core.kinds import first_line

Tokenizer = Callable[[list[str]], Tensor]


def make_tokenizer(source: Source) -> Tokenizer:
    """Texts -> int64 tokens `(texts, context_length)`, as a model's text tower reads them.

    Raises:
        UserError: its vocabulary is damaged, or it is one of the package transformers, which is not installed.
    """
    try:
        if not source.is_own:
            found: Tokenizer = open_clip.get_tokenizer(source.name)
            return found
        if "tokenizer" in source.config:
            return WordTokenizer(**source.config["tokenizer"])
        return _of_config(source)
    except ImportError as error:
        raise UserError(
            f"'{source.name}' reads texts with a tokenizer of the package transformers: pip install transformers"
        ) from error
    except (TypeError, KeyError, ValueError, AssertionError, OSError) as error:
        where = None if source.place is None else source.place.config_file
        raise UserError(f"the tokenizer of '{where or source.name}' cannot be made: {first_line(error)}") from error


def _of_config(source: Source) -> Tokenizer:
    text: dict[str, Any] = source.model_cfg["text_cfg"]
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    options = text.get("tokenizer_kwargs", {})
    if not text.get("hf_tokenizer_name"):
        simple: Tokenizer = SimpleTokenizer(context_length=length, **options)
        return simple
    folder = None if source.place is None or source.place.weights is None else source.place.weights.parent
    local = folder is not None and any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    )
    mode = {"tokenizer_mode": text["tokenizer_mode"]} if text.get("tokenizer_mode") else {}
    name = str(folder) if local else text["hf_tokenizer_name"]
    tokenizer: Tokenizer = HFTokenizer(name, context_length=length, **mode, **options)
    return tokenizer


def doubts(classnames: Sequence[str], templates: Sequence[Template], tokenizer: Tokenizer) -> list[str]:
    """What makes a zero-shot head of these names say little: names that are read as the same text, or not at all.

    Args:
        classnames: one name a class.
        templates: as `zero_shot_head` takes them; the first one serves.
        tokenizer: of the model.

    Returns:
        A sentence for each, with the classes; empty where all is well.
    """
    rows = tokenizer([fill(templates[0], name) for name in classnames])
    groups: dict[bytes, list[str]] = {}
    for name, row in zip(classnames, rows):
        groups.setdefault(row.cpu().numpy().tobytes(), []).append(name)
    alike = [names for names in groups.values() if len(names) > 1]
    found = []
    if alike and len(groups) == 1:
        found.append(
            f"all {len(classnames)} class names ({_listed(classnames)}) are one and the same text to this CLIP's "
            "tokenizer: its zero-shot predictions are guesses"
        )
    elif alike:
        count = sum(map(len, alike))
        told = "; ".join(_equals(names) for names in alike[:4])
        found.append(
            f"{count} of {len(classnames)} class names are the same text to this CLIP's tokenizer as another one, and "
            f"zero-shot predictions cannot tell them apart: {told}{'; ...' if len(alike) > 4 else ''}"
        )
    unknown = unknown_words(classnames, tokenizer)
    if unknown and len(groups) > 1:
        found.append(
            f"{len(unknown)} of {len(classnames)} class names hold words that this CLIP's vocabulary does not know: "
            f"{_listed(unknown)}"
        )
    return found


def unknown_words(texts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """The texts with a word that a vocabulary of whole words lacks; vocabularies of byte pairs lack none."""
    if not isinstance(tokenizer, WordTokenizer):
        return []
    known = set(tokenizer.words)
    return [text for text in texts if not split_words(text) or not set(split_words(text)) <= known]


def _equals(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(names))
    if len(different) == 1:
        return f"{different[0]!r} {len(names)} times"
    return " = ".join(map(repr, different[:4])) + (" = ..." if len(different) > 4 else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
