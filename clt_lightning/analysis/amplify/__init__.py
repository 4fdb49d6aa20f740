"""Codes of [CLS] amplified (VS2, VS2++), beside controls that tell what the codes are good for (docs/acting.md)."""

from clt_lightning.analysis.amplify.arms import STEERING, SUPERVISED, WORDS, Choice
from clt_lightning.analysis.amplify.gate import STATISTICS, Gate, GateBy
from clt_lightning.analysis.amplify.memory import memory_of, training_bytes
from clt_lightning.analysis.amplify.model import amplified
from clt_lightning.analysis.amplify.places import Amplifier, moved
from clt_lightning.analysis.amplify.result import AmplifyArm, AmplifyResult
from clt_lightning.analysis.amplify.study import AmplifyOptions, amplify

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
    "memory_of",
    "moved",
    "training_bytes",
]
