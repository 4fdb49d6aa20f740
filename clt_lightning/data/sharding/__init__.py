"""What makes tars: a set's `Sharder`, the `Item`s that it lists, and the writer. Imports no torch before it writes."""

from clt_lightning.data.sharding.sharder import Sharder, SourceSet
from clt_lightning.data.sharding.writer import Item

__all__ = ["Item", "Sharder", "SourceSet"]
