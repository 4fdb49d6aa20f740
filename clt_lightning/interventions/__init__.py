"""A transcoder in the place of what it rebuilds."""
