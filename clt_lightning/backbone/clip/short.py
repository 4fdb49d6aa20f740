"""Texts through the tower as far as they go: what comes after the longest one's end is not run."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn


class _Texts(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.model.encode_text(tokens, normalize=False)
        return found


def encode_tokens(model: Any, tokens: Tensor) -> Tensor:
    """`model.encode_text` of tokens `(texts, context)`, not normalised, at the cost of the longest text.

    A causal tower that reads a text at its end token never sees what comes after: of 77 positions a class name in a
    sentence takes about ten. Towers that read otherwise are run whole.
    """
    length = _length(model, tokens)
    inside = "model.text." if hasattr(model, "text") else "model."
    tower = getattr(model, "text", model)
    if length is None or length >= tokens.shape[1]:
        whole: Tensor = _Texts(model)(tokens)
        return whole
    changed = {f"{inside}attn_mask": tower.attn_mask[:length, :length]}
    if tower is model:  # a text transformer of its own cuts its positions itself
        changed[f"{inside}positional_embedding"] = model.positional_embedding[:length]
    found: Tensor = torch.func.functional_call(_Texts(model), changed, (tokens[:, :length],))
    return found


def _length(model: Any, tokens: Tensor) -> int | None:
    """Positions that matter; None where that cannot be told."""
    tower = getattr(model, "text", None)
    if tower is not None and (type(tower) is not TextTransformer or tower.cls_emb is not None):
        return None
    part = model if tower is None else tower
    kind = getattr(part, "text_pool_type" if tower is None else "pool_type", None)
    mask = getattr(part, "attn_mask", None)
    if mask is None or mask.shape[0] != tokens.shape[1] or not tokens.numel():
        return None
    if kind == "argmax":
        ends = tokens.argmax(1)
    elif kind == "eos":
        end = getattr(part, "text_eos_id" if tower is None else "eos_id", None)
        if end is None:
            return None
        ends = (tokens == end).int().argmax(1)
    else:
        return None
    return 1 + int(ends.max())
