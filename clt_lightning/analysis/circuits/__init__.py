"""Circuits: the graph of one image, what it predicts, and interventions that check it (docs/circuits.md)."""
