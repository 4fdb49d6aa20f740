"""`python -m clt_lightning shard …`: WebDataset tars out of official archives and folders. Imports no torch."""
