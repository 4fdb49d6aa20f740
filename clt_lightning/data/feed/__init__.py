"""From raw samples to batches: who reads what, decoding, the workers, the loaders and their exact place."""
