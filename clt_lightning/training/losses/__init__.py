"""The loss and its terms, one per file, each with its settings.

Conventions, the same for every part: mean over tokens, mean over layers, sum over features; weighed codes are in scaled
units (`|z| * decoder norm`). A part's value contains its coefficient, so the parts add up to the loss.
"""

from clt_lightning.training.losses.auxk import AuxKConfig, auxiliary_tokens, auxk_loss
from clt_lightning.training.losses.base import LossInputs, LossTerm
from clt_lightning.training.losses.cascade import CascadeConfig, cascade_parts
from clt_lightning.training.losses.config import LossConfig
from clt_lightning.training.losses.l1 import L1Config, l1_penalty
from clt_lightning.training.losses.parts import loss_parts
from clt_lightning.training.losses.pre_activation import PreActivationConfig, pre_activation_penalty
from clt_lightning.training.losses.prototype import PrototypeConfig, prototype_spread
from clt_lightning.training.losses.reconstruction import normalized_error, reconstruction_loss
from clt_lightning.training.losses.tanh import TanhConfig, tanh_penalty

__all__ = [
    "AuxKConfig",
    "CascadeConfig",
    "L1Config",
    "LossConfig",
    "LossInputs",
    "LossTerm",
    "PreActivationConfig",
    "PrototypeConfig",
    "TanhConfig",
    "auxiliary_tokens",
    "auxk_loss",
    "cascade_parts",
    "l1_penalty",
    "loss_parts",
    "normalized_error",
    "pre_activation_penalty",
    "prototype_spread",
    "reconstruction_loss",
    "tanh_penalty",
]
