"""What the demo's CLIP can do, and how much of it its MLPs carry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clt_lightning.backbone.clip.frozen import FrozenCLIP


def evaluate(
    clip: FrozenCLIP,
    images: Tensor,
    labels: Tensor,
    classnames: Sequence[str],
    templates: Sequence[str],
    held_out: Sequence[int],
    batch_size: int = 256,
) -> dict[str, Any]:
    """Zero-shot accuracy of a CLIP, as it is and with every MLP replaced by its mean output.

    Args:
        clip: the model.
        images: `(n, 3, image_size, image_size)`, preprocessed; none of them seen in training.
        labels: `(n,)` int64.
        classnames: names by label.
        templates: prompt templates.
        held_out: labels that the training never saw.
        batch_size: images a forward.

    Returns:
        Accuracies in percent: `top1`, `top1_held_out` (the held-out classes, among all classes), `top1_mean_ablated`
        (one mean over all tokens per layer), `top1_mean_ablated_by_position` (one mean per position), each layer
        ablated alone; and per layer the root mean square of the MLP's output and the share of it that is not its mean.
    """
    head = clip.zero_shot_head(classnames, templates)

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
    never_seen = torch.isin(labels, torch.tensor(held_out))
    everywhere = list(range(clip.n_layers))
    overall = means.mean(dim=1, keepdim=True)
    return {
        "images": len(images),
        "top1": round(original.mean().item(), 2),
        "top1_held_out": round(original[never_seen].mean().item(), 2),
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
