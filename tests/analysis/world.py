"""A CLIP of 3 layers whose every part matters, a transcoder with random decoders, and images with labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.training.module import CLTModule
from clt_lightning.training.settings import TranscoderConfig
from clt_lightning.transcoder import CrossLayerTranscoder, TopK

NAME = "tiny-for-analysis"
LAYERS, WIDTH, SIZE, FEATURES, K = 3, 32, 24, 40, 4
POSITIONS = 10
CLASSES = ["cat", "dog", "red car", "tree", "boat"]
TEMPLATES = ["a photo of a {c}.", "the {c}"]


def register(folder: Path, name: str = NAME, **vision: Any) -> None:
    """Make the tiny architecture known to open_clip."""
    tower = {"image_size": SIZE, "layers": LAYERS, "width": WIDTH, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": tower | vision, "text_cfg": text}
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def shake(clip: FrozenCLIP) -> FrozenCLIP:
    """Weights large enough that attention mixes positions, MLPs matter, and no bias or gain is trivial."""
    generator = torch.Generator().manual_seed(1)
    for weight in clip.model.visual.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data += ((0.3 if weight.ndim == 1 else 0.15) * noise).to(weight.dtype)
    return clip


def make_clip(name: str = NAME) -> FrozenCLIP:
    return shake(FrozenCLIP(name, pretrained=None))


def randomise(clt: CrossLayerTranscoder, seed: int = 3, size: float = 0.2) -> CrossLayerTranscoder:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (*clt.W_dec, *(clt.W_skip or ())):
            weight.copy_(torch.randn(weight.shape, generator=generator) * size)
        for weight in (clt.b_dec, clt.b_enc, clt.y_mean):
            weight.copy_(torch.randn(weight.shape, generator=generator) * size)
        clt.x_scale.copy_(torch.tensor([1.5, 0.7, 1.1]))
        clt.y_scale.copy_(torch.tensor([0.8, 1.2, 1.4]))
        clt.normalized.fill_(True)
    return clt.eval()


def make_clt(topology: str = "cross_layer", skip: bool = False, **options: Any) -> CrossLayerTranscoder:
    clt = CrossLayerTranscoder(LAYERS, WIDTH, FEATURES, TopK(K), topology, skip, seed=2)  # type: ignore[arg-type]
    return randomise(clt, **options)


def make_module() -> CLTModule:
    model = CLTModule(
        backbone=FrozenCLIP(name=NAME, pretrained=None),
        transcoder=TranscoderConfig(n_features=FEATURES, activation=TopK(K)),
    )
    shake(model.clip)
    randomise(model.transcoder)
    return model


class Images(Dataset[dict[str, Any]]):
    """Noise images from a seed; every 5th has no label."""

    def __init__(self, indices: list[int]) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, Any]:
        index = self.indices[item]
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, SIZE, SIZE, generator=generator) + 2 * torch.randn(3, 1, 1, generator=generator)
        return {"image": image, "label": -1 if index % 5 == 4 else (index // 2) % 5, "key": f"made/{index:04d}"}


class Made(pl.LightningDataModule):
    """Training images 1000.., test images 0..n-1, each on one process exactly once."""

    def __init__(self, n: int = 26, n_train: int = 30, batch_size: int = 8) -> None:
        super().__init__()
        self.n, self.n_train, self.batch_size = n, n_train, batch_size
        self.classnames, self.templates = CLASSES, TEMPLATES

    def split(self, name: str) -> bool:
        return name in ("train", "test")

    def eval_dataloader(self, split: str, *, limit: int | None = None) -> DataLoader[dict[str, Any]]:
        start, n = (1000, min(limit or self.n_train, self.n_train)) if split == "train" else (0, self.n)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(Images(list(range(start + rank, start + n, world))), self.batch_size)

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self.eval_dataloader("test")

    def everything(self, split: str = "test") -> tuple[Tensor, np.ndarray, list[str]]:
        start, n = (1000, self.n_train) if split == "train" else (0, self.n)
        samples = [Images(list(range(start, start + n)))[i] for i in range(n)]
        labels = np.array([s["label"] for s in samples])
        return torch.stack([s["image"] for s in samples]), labels, [s["key"] for s in samples]


def numpy_codes(clt: CrossLayerTranscoder, x: np.ndarray) -> np.ndarray:
    """Codes `(L, N, F)` by hand: scale, encode, keep the k largest positive."""
    out = np.zeros((LAYERS, x.shape[1], clt.n_features))
    for layer in range(LAYERS):
        W = clt.W_enc[layer].detach().double().numpy()
        pre = (x[layer] * float(clt.x_scale[layer])) @ W.T + clt.b_enc[layer].detach().double().numpy()
        top = np.argsort(-pre, 1)[:, :K]
        kept = np.maximum(np.take_along_axis(pre, top, 1), 0)
        np.put_along_axis(out[layer], top, kept, 1)
    return out


def numpy_terms(clt: CrossLayerTranscoder, codes: np.ndarray) -> np.ndarray:
    """`(source, target, N, d)` by hand, zeros where a source does not write."""
    out = np.zeros((LAYERS, LAYERS, codes.shape[1], WIDTH))
    for i in range(LAYERS):
        W = clt.W_dec[i].detach().double().numpy()
        for t in range(W.shape[1]):
            out[i, i + t] = codes[i] @ W[:, t] * float(clt.y_scale[i + t])
    return out
