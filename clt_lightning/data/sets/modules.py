"""Every data module of the package by its class's name; importing this imports them all."""

from __future__ import annotations

import lightning.pytorch as pl

from clt_lightning.core.classes import subclasses
from clt_lightning.data.sets import import_modules
from clt_lightning.data.sets.base import WebImages

__all__ = ["CLASSES", "WebImages"]

import_modules()

CLASSES: dict[str, type] = {
    name: cls
    for name, found in sorted(subclasses(pl.LightningDataModule).items())
    for cls in found
    if cls.__module__.startswith("clt_lightning.data.")
}
