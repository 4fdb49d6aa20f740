"""Waterbirds, CelebA and other sets whose table tells a class and an attribute that goes with it."""
