"""Feature-sharded training: every process keeps F/R features of every layer (docs/scaling.md)."""

from clt_lightning.parallel.shards import Shards
from clt_lightning.parallel.transcoder import ShardedTranscoder

__all__ = ["ShardedTranscoder", "Shards"]
