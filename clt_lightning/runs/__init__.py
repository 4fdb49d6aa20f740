"""A run from its first start to its end: whole checkpoints, exact resume, signals, and a watch on its numbers."""
