"""What stands in the place of attention layers: sparse units of rank one, or an autoencoder of what attention adds."""

from clt_lightning.transcoder.attention.kinds import AnyAttention, at_heads, load_attention
from clt_lightning.transcoder.attention.sparse import AttentionOutput, SparseAttention

__all__ = ["AnyAttention", "AttentionOutput", "SparseAttention", "at_heads", "load_attention"]
