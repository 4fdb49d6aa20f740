"""Sparse replacement attention: many units of rank one in the place of an attention layer."""

from clt_lightning.transcoder.attention.sparse import AttentionOutput, SparseAttention

__all__ = ["AttentionOutput", "SparseAttention"]
