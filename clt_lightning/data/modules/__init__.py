"""The data modules: one for any folder of tars, and one a set."""

from clt_lightning.data.modules.base import WebImages
from clt_lightning.data.modules.cifar100 import CIFAR100
from clt_lightning.data.modules.coco import COCO
from clt_lightning.data.modules.demo import Demo
from clt_lightning.data.modules.imagenet100 import ImageNet100

__all__ = ["CIFAR100", "COCO", "Demo", "ImageNet100", "WebImages"]
