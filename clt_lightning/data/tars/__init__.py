"""WebDataset tars as they lie: where they are, what they hold, and their samples as raw bytes."""
