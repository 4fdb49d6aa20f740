"""The image tower in pieces: the rest of a forward from any layer on, and what may be taken for granted of it.

Evaluations run many variants of the same images that differ only from some layer on; what comes before is computed
once (`observe`).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.interventions.observation import Needs, Observation, observe
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.interventions.resume import advance
from clt_lightning.transcoder import CrossLayerTranscoder

__all__ = ["Needs", "Observation", "advance", "at_all_mlps", "finish", "observe", "reads_cls_only"]


def finish(
    clip: Backbone, stream: Float[Tensor, "images positions d_model"], first: int, grad: bool = False
) -> Float[Tensor, "images embed_dim"]:
    """The rest of a forward from block `first` on: `clip.run_from`, whose words hold."""
    return clip.run_from(first, stream, grad=grad)


def reads_cls_only(clip: Backbone) -> bool:
    """Whether the embedding is made of the last [CLS] token alone (OpenAI's CLIP), so that no other matters there."""
    return clip.readout() is not None


def at_all_mlps(clip: Backbone, clt: CrossLayerTranscoder) -> bool:
    """Whether a transcoder rebuilds the MLP outputs of all blocks: what splitting up a logit takes for granted."""
    return clt.sites.is_mlp and len(check_fit(clip, clt)) == clip.n_layers
