"""Several sets in one: every batch holds images of each, and says which."""
