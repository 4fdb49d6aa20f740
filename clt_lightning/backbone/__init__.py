"""Frozen Vision Transformers: every site of every block read and overridden, whatever library they come from."""

from clt_lightning.backbone.activations import Activations, random_positions
from clt_lightning.backbone.backbone import PRECISIONS, Backbone, Images, Precision
from clt_lightning.backbone.taps import OverrideFn, ReadFn
from clt_lightning.core.sites import SITES

__all__ = [
    "PRECISIONS",
    "SITES",
    "Activations",
    "Backbone",
    "Images",
    "OverrideFn",
    "Precision",
    "ReadFn",
    "random_positions",
]
