"""What the demo's CLIP can do, and how much of it its MLPs carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor

from clt_lightning.clip.frozen import FrozenCLIP
from clt_lightning.data.renders import CLASSNAMES, HELD_OUT, TEMPLATES, render


def render_tensors(images: Tensor) -> Tensor:
    """uint8 `(n, size, size, 3)` -> normalised float32 `(n, 3, size, size)`, as the demo's `preprocess` makes them."""
    mean = torch.tensor(OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(OPENAI_DATASET_STD).view(3, 1, 1)
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def evaluate(clip: FrozenCLIP, seed: int, n: int, batch_size: int = 256) -> dict[str, Any]:
    """Zero-shot accuracy on fresh renders of all classes, as it is and with every MLP replaced by its mean output.

    Args:
        clip: a model that reads the renders' size.
        seed: world of the renders; another than the training's.
        n: number of renders.
        batch_size: images a forward.

    Returns:
        Accuracies in percent: `top1`, `top1_held_out` (the classes never trained on), `top1_mean_ablated` (means over
        all tokens), `top1_mean_ablated_by_position` (one mean a position), each layer ablated alone; and per layer the
        root mean square of the MLP's output and the share of it that is not the mean.
    """
    drawn = [render(seed, i, size=clip.image_size) for i in range(n)]
    images = render_tensors(torch.from_numpy(np.stack([np.asarray(r.image) for r in drawn])))
    labels = torch.tensor([r.label for r in drawn])
    head = clip.zero_shot_head(CLASSNAMES, TEMPLATES)

    def hits() -> Tensor:
        embeddings = torch.cat([clip.encode_image(part) for part in images.split(batch_size)])
        return (clip.logits(embeddings, head).argmax(1) == labels).float() * 100

    means, power = _mean_outputs(clip, images.split(batch_size))

    def ablated(means: Tensor, layers: list[int]) -> float:
        def fill(layer: int, x: Tensor, compute_y: Callable[[], Tensor]) -> Tensor:
            return means[layer].expand_as(x)

        with clip.mlp_override(fill, layers):
            return round(hits().mean().item(), 2)

    original = hits()
    held_out = torch.isin(labels, torch.tensor(HELD_OUT))
    everywhere = list(range(clip.n_layers))
    overall = means.mean(dim=1, keepdim=True)
    return {
        "seed": seed,
        "renders": n,
        "top1": round(original.mean().item(), 2),
        "top1_held_out": round(original[held_out].mean().item(), 2),
        "top1_mean_ablated": ablated(overall, everywhere),
        "top1_mean_ablated_by_position": ablated(means, everywhere),
        "top1_one_layer_ablated": [ablated(overall, [layer]) for layer in everywhere],
        "mlp_output_rms": [round(v, 4) for v in power.sqrt().tolist()],
        "mlp_output_varying_share": [round(1 - (m**2).mean().item() / p, 4) for m, p in zip(overall, power.tolist())],
    }


def _mean_outputs(clip: FrozenCLIP, batches: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Mean MLP output by layer and position `(layers, positions, d_model)`, and mean square by layer `(layers,)`."""
    total = torch.zeros(clip.n_layers, clip.n_positions, clip.d_model, dtype=torch.float64)
    square = torch.zeros(clip.n_layers, dtype=torch.float64)
    n_images = sum(len(batch) for batch in batches)
    for batch in batches:
        y = clip.capture(batch).y.double()
        total += y.unflatten(1, (len(batch), clip.n_positions)).sum(1)
        square += (y**2).mean(2).sum(1)
    return (total / n_images).float(), (square / (n_images * clip.n_positions)).float()
