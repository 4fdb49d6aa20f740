"""Cross-Layer Transcoders on a frozen CLIP: train them, put them in the place of its MLPs, see what they explain."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from clt_lightning import analysis, callbacks, data, metrics
    from clt_lightning.analysis import Edit, explain_image, open_run, steer
    from clt_lightning.analysis.circuits import Graph, NodeSet, attribute, intervene
    from clt_lightning.analysis.evaluate import evaluate
    from clt_lightning.analysis.stability import compare
    from clt_lightning.analysis.target import Target
    from clt_lightning.backbone.clip import FrozenCLIP
    from clt_lightning.backbone.vit import FrozenViT
    from clt_lightning.core.errors import UserError
    from clt_lightning.core.sites import Sites
    from clt_lightning.core.tokens import TokenLayout
    from clt_lightning.interventions.replacement import replaced
    from clt_lightning.training.attention import AttentionConfig, AttentionModule
    from clt_lightning.training.module import CLTModule
    from clt_lightning.training.settings import (
        LossConfig,
        ParallelConfig,
        ReviveConfig,
        ScheduleConfig,
        TokensConfig,
        TranscoderConfig,
    )
    from clt_lightning.transcoder import AbsTopK, BatchTopK, Codes, CrossLayerTranscoder, JumpReLU, ReLU, TopK
    from clt_lightning.transcoder.attention import SparseAttention

_HOME = {
    "FrozenCLIP": "backbone.clip",
    "FrozenViT": "backbone.vit",
    "Sites": "core.sites",
    "TokenLayout": "core.tokens",
    "CrossLayerTranscoder": "transcoder",
    "Codes": "transcoder",
    "ReLU": "transcoder",
    "TopK": "transcoder",
    "AbsTopK": "transcoder",
    "BatchTopK": "transcoder",
    "JumpReLU": "transcoder",
    "SparseAttention": "transcoder.attention",
    "CLTModule": "training.module",
    "AttentionConfig": "training.attention",
    "AttentionModule": "training.attention",
    "replaced": "interventions.replacement",
    "LossConfig": "training.settings",
    "ParallelConfig": "training.settings",
    "ReviveConfig": "training.settings",
    "ScheduleConfig": "training.settings",
    "TokensConfig": "training.settings",
    "TranscoderConfig": "training.settings",
    "Edit": "analysis",
    "Graph": "analysis.circuits",
    "NodeSet": "analysis.circuits",
    "attribute": "analysis.circuits",
    "compare": "analysis.stability",
    "intervene": "analysis.circuits",
    "Target": "analysis.target",
    "evaluate": "analysis",
    "explain_image": "analysis",
    "open_run": "analysis",
    "steer": "analysis",
    "UserError": "core.errors",
}
_MODULES = {name: name for name in ("analysis", "backbone", "callbacks", "data", "metrics", "training", "transcoder")}
_MODULES["optim"] = "training.optim"

__all__ = [
    "AbsTopK",
    "AttentionConfig",
    "AttentionModule",
    "BatchTopK",
    "CLTModule",
    "Codes",
    "CrossLayerTranscoder",
    "Edit",
    "FrozenCLIP",
    "FrozenViT",
    "Graph",
    "JumpReLU",
    "LossConfig",
    "NodeSet",
    "ParallelConfig",
    "ReLU",
    "ReviveConfig",
    "ScheduleConfig",
    "Sites",
    "SparseAttention",
    "Target",
    "TokenLayout",
    "TokensConfig",
    "TopK",
    "TranscoderConfig",
    "UserError",
    "analysis",
    "attribute",
    "callbacks",
    "compare",
    "data",
    "evaluate",
    "explain_image",
    "intervene",
    "metrics",
    "open_run",
    "replaced",
    "steer",
]


def __getattr__(name: str) -> Any:
    # loaded on first use, so that commands that need no model start in a moment
    if name in _HOME:
        return getattr(importlib.import_module(f"clt_lightning.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"clt_lightning.{_MODULES[name]}")
    raise AttributeError(f"module 'clt_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "__version__"})
