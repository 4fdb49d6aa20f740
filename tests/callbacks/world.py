"""Real components on made data: a CLIP of 3 layers, and images with labels that depend on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import open_clip
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.training.module import CLTModule
from clt_lightning.training.settings import LossConfig, TranscoderConfig
from clt_lightning.transcoder import TopK

NAME = "tiny-for-callbacks"
LAYERS, WIDTH, SIZE = 3, 32, 24
CLASSES = ["cat", "dog", "red car", "tree", "boat", "lamp", "chair"]


def register(folder: Path) -> None:
    """Make the tiny architecture known to open_clip."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIZE, "layers": LAYERS, "width": WIDTH, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / f"{NAME}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def module(k: int = 4, n_features: int = 48, seed: int = 0, skip: bool = False) -> CLTModule:
    made = CLTModule(
        backbone=FrozenCLIP(name=NAME, pretrained=None),
        transcoder=TranscoderConfig(n_features=n_features, activation=TopK(k), skip=skip),
        loss=LossConfig(),
        seed=seed,
    )
    if skip:  # a path that matters, beside features that do
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in (*made.transcoder.W_dec, *(made.transcoder.W_skip or ())):
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return made


class Images(Dataset[dict[str, Any]]):
    """Noise images from a seed; every 5th has no label."""

    def __init__(self, indices: list[int]) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index = self.indices[item]
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, SIZE, SIZE, generator=generator) + torch.randn(3, 1, 1, generator=generator)
        label = -1 if index % 5 == 4 else index % len(CLASSES)
        return {"image": image, "label": label, "key": f"made/{index}"}


class Made(pl.LightningDataModule):
    """Training on images 1000.., validation and test on 0..n-1, each on one process exactly once."""

    def __init__(self, n: int = 26, batch_size: int = 8, labelled: bool = True) -> None:
        super().__init__()
        self.n, self.batch_size, self.labelled = n, batch_size, labelled
        self.classnames = CLASSES if labelled else None
        self.templates = ["a photo of a {c}.", "the {c}"] if labelled else None

    def describe(self) -> dict[str, Any]:
        return {"set": "made", "images": self.n}

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Images(list(range(1000, 1000 + 4 * self.batch_size))), self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(Images(list(range(rank, self.n, world))), self.batch_size)

    test_dataloader = val_dataloader

    def everything(self) -> tuple[Tensor, Tensor]:
        samples = [Images(list(range(self.n)))[i] for i in range(self.n)]
        return torch.stack([s["image"] for s in samples]), torch.tensor([s["label"] for s in samples])


def trainer(folder: Path, *callbacks: pl.Callback, logger: Any = True, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": 4,
        "log_every_n_steps": 2,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in callbacks),
        "default_root_dir": folder,
        "use_distributed_sampler": False,
        "logger": TensorBoardLogger(folder, name="run") if logger is True else logger,
    }
    return pl.Trainer(callbacks=list(callbacks), **(defaults | options))
