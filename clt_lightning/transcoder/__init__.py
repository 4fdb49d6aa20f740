"""The transcoder: tensors in, tensors out. Knows nothing of CLIP, of Lightning or of data."""

from clt_lightning.transcoder.activations import AbsTopK, Activation, BatchTopK, JumpReLU, ReLU, TopK
from clt_lightning.transcoder.clt import CrossLayerTranscoder
from clt_lightning.transcoder.codes import Codes
from clt_lightning.transcoder.normalization import ActivationStatistics, StatisticsAccumulator
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.requests import AuxiliaryRequest, CLTOutput

__all__ = [
    "AbsTopK",
    "Activation",
    "ActivationStatistics",
    "AuxiliaryRequest",
    "BatchTopK",
    "CLTOutput",
    "Codes",
    "CrossLayerTranscoder",
    "JumpReLU",
    "Pairs",
    "ReLU",
    "StatisticsAccumulator",
    "TopK",
]
