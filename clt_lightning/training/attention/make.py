"""From settings, or from what is there, to a learner of the right kind."""

from __future__ import annotations

from typing import Any

from clt_lightning.backbone import Backbone
from clt_lightning.core.sites import Sites
from clt_lightning.interventions.replacement import check_attention_fit
from clt_lightning.training.attention.autoencoder import AutoencoderLearner
from clt_lightning.training.attention.config import AttentionConfig
from clt_lightning.training.attention.heads import HeadsLearner
from clt_lightning.training.attention.learner import AttentionLearner
from clt_lightning.training.attention.units import UnitsLearner
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention, SparseAttention, at_heads


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
        check_attention_fit(clip, attention)
        config = _settings(attention)
    kind: type[AttentionLearner] = UnitsLearner
    if not isinstance(attention, SparseAttention):
        kind = HeadsLearner if at_heads(attention) else AutoencoderLearner
    return kind(clip, attention, config, seed)


def _made(clip: Backbone, config: AttentionConfig, seed: int) -> AnyAttention:
    sizes = clip.n_layers, clip.site_width(config.site), config.n_features
    if config.kind == "autoencoder":
        positions = clip.n_positions if config.activation.cls_weight != 1 else None
        site = Sites(config.site, config.site)
        return CrossLayerTranscoder(*sizes, config.activation, "sae", seed=seed, sites=site, n_positions=positions)
    n_heads = clip.attention_parts(0).n_heads if config.n_heads is None else config.n_heads
    return SparseAttention(*sizes, n_heads, config.activation, config.d_qk, seed=seed)


def _settings(attention: AnyAttention) -> AttentionConfig:
    if not isinstance(attention, SparseAttention):
        site: Any = str(attention.sites.write)
        return AttentionConfig(attention.n_features, attention.activation, kind="autoencoder", site=site)
    n_heads = attention.n_heads if attention.d_qk is not None else None
    return AttentionConfig(attention.n_features, attention.activation, attention.d_qk, n_heads)
