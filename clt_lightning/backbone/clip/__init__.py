"""The frozen CLIP: an open_clip backbone with its text tower and zero-shot heads."""

from clt_lightning.backbone import Activations, OverrideFn, random_positions
from clt_lightning.backbone.clip.frozen import FrozenCLIP
from clt_lightning.core.tokens import TOKEN_SETS

__all__ = ["TOKEN_SETS", "Activations", "FrozenCLIP", "OverrideFn", "random_positions"]
