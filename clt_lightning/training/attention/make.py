"""From settings, or from what is there, to a learner of the right kind."""

from __future__ import annotations

from clt_lightning.backbone import Backbone
from clt_lightning.core.sites import Sites
from clt_lightning.training.attention.autoencoder import AutoencoderLearner
from clt_lightning.training.attention.config import AttentionConfig
from clt_lightning.training.attention.learner import AttentionLearner
from clt_lightning.training.attention.units import UnitsLearner
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention, SparseAttention


def attention_learner(clip: Backbone, attention: AnyAttention | AttentionConfig, seed: int) -> AttentionLearner:
    """The learner of units, or of an autoencoder.

    Args:
        clip: the backbone.
        attention: what is trained, in place; or the settings that make it.
        seed: of the first weights.

    Raises:
        UserError: what does not fit the backbone.
    """
    if isinstance(attention, AttentionConfig):
        config, attention = attention, _made(clip, attention, seed)
    else:
        config = _settings(attention)
    kind = UnitsLearner if isinstance(attention, SparseAttention) else AutoencoderLearner
    return kind(clip, attention, config, seed)


def _made(clip: Backbone, config: AttentionConfig, seed: int) -> AnyAttention:
    sizes = clip.n_layers, clip.d_model, config.n_features
    if config.kind == "autoencoder":
        positions = clip.n_positions if config.activation.cls_weight != 1 else None
        site = Sites("attn_out", "attn_out")
        return CrossLayerTranscoder(*sizes, config.activation, "sae", seed=seed, sites=site, n_positions=positions)
    n_heads = clip.attention_parts(0).n_heads if config.n_heads is None else config.n_heads
    return SparseAttention(*sizes, n_heads, config.activation, config.d_qk, seed=seed)


def _settings(attention: AnyAttention) -> AttentionConfig:
    if not isinstance(attention, SparseAttention):
        return AttentionConfig(attention.n_features, attention.activation, kind="autoencoder")
    n_heads = attention.n_heads if attention.d_qk is not None else None
    return AttentionConfig(attention.n_features, attention.activation, attention.d_qk, n_heads)
