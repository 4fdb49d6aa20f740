"""`python -m clt_lightning shard …`: WebDataset tars out of official archives and folders. Imports no torch."""

from clt_lightning.data.shard.command import add_arguments, run

__all__ = ["add_arguments", "run"]
