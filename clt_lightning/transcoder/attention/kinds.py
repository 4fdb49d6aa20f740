"""The two kinds of model that stand in the place of attention, and which of them a folder holds."""

from __future__ import annotations

from pathlib import Path

import torch

from clt_lightning.transcoder import pretrained
from clt_lightning.transcoder.attention.sparse import SparseAttention
from clt_lightning.transcoder.clt import CrossLayerTranscoder

#: Units, which read the stream at the keys; or an autoencoder at `attn_out` or `attn_z`, a transcoder of topology `sae`
AnyAttention = SparseAttention | CrossLayerTranscoder


def at_heads(attention: AnyAttention) -> bool:
    """Whether it is an autoencoder of the heads' outputs, `attn_z`, which the model's own projection then reads."""
    return isinstance(attention, CrossLayerTranscoder) and attention.sites.write == "attn_z"


def load_attention(folder: str | Path, device: torch.device | str = "cpu", *, trust: bool = False) -> AnyAttention:
    """What `save_pretrained` of either kind wrote into a folder.

    Args:
        folder: or a repository's name.
        device: where it goes.
        trust: as of `from_pretrained`.

    Raises:
        UserError: as `from_pretrained`.
    """
    place = pretrained.find(folder)
    if pretrained.is_ours(place) and "n_heads" in pretrained.content_of(place):
        return SparseAttention.from_pretrained(place, device, trust=trust)
    return CrossLayerTranscoder.from_pretrained(place, device, trust=trust)
