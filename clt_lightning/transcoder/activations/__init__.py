"""Activation functions, one per file: which pre-activations become codes, and with what gradient."""

from clt_lightning.transcoder.activations.abs_topk import AbsTopK
from clt_lightning.transcoder.activations.base import Activation, Scope, dense
from clt_lightning.transcoder.activations.batch_topk import BatchTopK
from clt_lightning.transcoder.activations.config import ACTIVATIONS, from_config
from clt_lightning.transcoder.activations.jump_relu import JumpReLU
from clt_lightning.transcoder.activations.relu import ReLU
from clt_lightning.transcoder.activations.topk import TopK

__all__ = [
    "ACTIVATIONS",
    "AbsTopK",
    "Activation",
    "BatchTopK",
    "JumpReLU",
    "ReLU",
    "Scope",
    "TopK",
    "dense",
    "from_config",
]
