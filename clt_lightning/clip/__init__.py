"""The frozen CLIP: embeddings, captured MLP activations, overridden MLPs, zero-shot heads."""

from clt_lightning.clip.activations import TOKEN_SETS, Activations, random_positions
from clt_lightning.clip.frozen import FrozenCLIP
from clt_lightning.clip.overrides import BranchFn

__all__ = ["TOKEN_SETS", "Activations", "BranchFn", "FrozenCLIP", "random_positions"]
