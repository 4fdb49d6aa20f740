"""The small CLIP that comes with the package: its weights, its config with the vocabulary, and how it was trained."""
