"""`fit --sweep`: several transcoders on one forward of the backbone, each a run of its own."""
