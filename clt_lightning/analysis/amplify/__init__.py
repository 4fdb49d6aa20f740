"""Codes of [CLS] amplified (VS2, VS2++), beside controls that tell what the codes are good for (docs/acting.md)."""

from clt_lightning.analysis.amplify.arms import STEERING, SUPERVISED, WORDS, Choice
from clt_lightning.analysis.amplify.gate import STATISTICS, Gate, GateBy
from clt_lightning.analysis.amplify.model import amplified
from clt_lightning.analysis.amplify.places import Amplifier, moved
from clt_lightning.analysis.amplify.result import AmplifyArm, AmplifyResult
from clt_lightning.analysis.amplify.study import AmplifyOptions, amplify
from clt_lightning.analysis.amplify.training import training_bytes

__all__ = [
    "STATISTICS",
    "STEERING",
    "SUPERVISED",
    "WORDS",
    "Amplifier",
    "AmplifyArm",
    "AmplifyOptions",
    "AmplifyResult",
    "Choice",
    "Gate",
    "GateBy",
    "amplified",
    "amplify",
    "moved",
    "training_bytes",
]
