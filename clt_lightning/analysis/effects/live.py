"""The live model's answer to what features write: gradients, integrated gradients, and real ablation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.analysis.tower import Observation, finish
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.interventions.lanes import Added, rows_at_once, run_lanes
from clt_lightning.interventions.resume import ends_at_cls
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

#: Gradients on the path from the code to 0, at the nodes of Gauss and Legendre: n of them are exact where the target
#: is a polynomial of degree 2 n along it
NODES = 2


def _run(clip: FrozenCLIP, behind: Tensor, first: int, added: Sequence[Tensor]) -> Tensor:
    """Embeddings `(rows, embed_dim)` with `added[j - first]` put onto each MLP output from layer `first` on.

    `behind` is the untouched stream behind block `first`. Gradients flow to what is added.
    """

    def branch(layer: int, x: Tensor, compute_y: object) -> Tensor:
        if ends_at_cls(clip, layer):  # what the others get is read by nothing
            with torch.autocast(x.device.type, enabled=False):
                y = clip.family.mlp(clip.blocks[layer], x[:, :1])
            return torch.cat([y + added[layer - first][:, :1].to(y.dtype), torch.zeros_like(x[:, 1:])], 1)
        own: Tensor = compute_y()  # type: ignore[operator]
        return own + added[layer - first].to(own.dtype)

    stream = behind + added[0].to(behind.dtype)
    later = range(first + 1, clip.n_layers)
    with clip.mlp_override(branch, later) if later else nullcontext():
        return finish(clip, stream, first + 1, grad=True)


def output_gradients(
    clip: FrozenCLIP,
    behind: Float[Tensor, "rows positions d_model"],
    first: int,
    directions: Float[Tensor, "targets rows embed_dim"],
    added: Sequence[Float[Tensor, "rows positions d_model"]] | None = None,
) -> tuple[Float[Tensor, "targets rows"], Float[Tensor, "targets layers rows positions d_model"]]:
    """Targets and their gradients by every MLP output, attention and later MLPs at work.

    Args:
        clip: the backbone.
        behind: `(rows, positions, d_model)` the untouched stream behind block `first`.
        first: first layer whose MLP output counts.
        directions: `(targets, rows, embed_dim)`: target t of row r is `logit_scale * <e_r, directions[t, r]>`.
        added: `(rows, positions, d_model)` for each layer from `first` on, put onto the MLP's output; None: nothing.

    Returns:
        `(targets, rows)` values and `(targets, layers - first, rows, positions, d_model)` gradients.
    """
    if added is None:
        nothing = torch.zeros(behind.shape, dtype=torch.float32, device=behind.device)
        added = [nothing] * (clip.n_layers - first)
    # Lightning evaluates in inference mode, whose tensors never enter a graph: copies do
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [part.detach().clone().requires_grad_() for part in added]
        embeddings = _run(clip, behind.detach().clone(), first, leaves)
        values = clip.logit_scale * torch.einsum("trd,rd->tr", directions.to(embeddings).clone(), embeddings)
        # the last layer's MLP at a patch reaches nothing where the embedding is read from [CLS]: zeros, not None
        gradients = [
            torch.stack(torch.autograd.grad(row.sum(), leaves, retain_graph=True, materialize_grads=True))
            for row in values
        ]
    return values.detach(), torch.stack(gradients)


def total_effects(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    seen: Observation,
    codes: Codes,
    directions: Float[Tensor, "targets images embed_dim"],
) -> list[Float[Tensor, "targets _"]]:
    """What each active code adds to each target, to first order: code x <gradient, decoder rows>.

    Args:
        clip: the backbone.
        clt: the transcoder.
        seen: the untouched model on these images, with the stream behind block 0.
        codes: their codes.
        directions: `(targets, images, embed_dim)`.

    Returns:
        one `(targets, pairs)` float32 a layer, pairs in the order of `codes.layer(l)`.
    """
    parts = []
    for rows in _chunks(clip, seen.n_images):
        parts.append(output_gradients(clip, seen.streams[1][rows], 0, directions[:, rows])[1])
    gradient = torch.cat(parts, 2).flatten(2, 3)  # (targets, layers, tokens, d_model)
    values = [codes.layer(layer)[1].detach().float() for layer in range(clt.n_layers)]
    per_target = [clt.code_gradients(codes, row) for row in gradient]
    return [torch.stack([row[layer] for row in per_target]) * values[layer] for layer in range(clt.n_layers)]


def per_image(
    codes: Codes, layer: int, effects: Float[Tensor, "targets pairs"], n_images: int
) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"], Float[Tensor, "targets found"]]:
    """Effects of a layer's active codes, summed over the positions of each image.

    Args:
        codes: `(layers, tokens, F)`.
        layer: which layer.
        effects: `(targets, pairs)`, from `total_effects`.
        n_images: images that the tokens are of.

    Returns:
        image and feature of every combination with an active code, `(found,)` each, and `(targets, found)` float64.
    """
    pairs, values = codes.layer(layer)
    active = values.detach() != 0
    slot = pairs.tokens[active] // (codes.n_tokens // n_images) * codes.n_features + pairs.features[active]
    slots, owner = slot.unique(return_inverse=True)
    wide = effects.device if effects.device.type != "mps" else torch.device("cpu")
    sums = torch.zeros(len(effects), len(slots), dtype=torch.float64, device=wide)
    sums.index_add_(1, owner.to(wide), effects[:, active].to(wide, torch.float64))
    return slots // codes.n_features, slots % codes.n_features, sums


def written(
    clt: CrossLayerTranscoder, layer: int, features: Int[Tensor, " rows"], codes: Float[Tensor, "rows positions"]
) -> list[Float[Tensor, "rows positions d_model"]]:
    """What single features write: `(rows, positions, d_model)` for each layer from `layer` on, zeros where they do not.

    Args:
        clt: the transcoder.
        layer: the features' layer.
        features: `(rows,)`.
        codes: `(rows, positions)` their codes.
    """
    codes = codes.float()
    return [
        codes[:, :, None] * clt.rows(layer, features, target)[:, None]
        if clt.writes(layer, target)
        else codes.new_zeros(*codes.shape, clt.d_model)
        for target in range(layer, clt.n_layers)
    ]


def _chunks(clip: FrozenCLIP, n: int) -> Iterator[slice]:
    size = rows_at_once(clip)
    return (slice(start, start + size) for start in range(0, n, size))


def _nothing(directions: Tensor) -> Tensor:
    """`(targets, 0)`: of no rows."""
    return directions.new_zeros(len(directions), 0)


def _slopes(
    clip: FrozenCLIP, behind: Tensor, first: int, directions: Tensor, parts: Sequence[Tensor], missing: float
) -> Tensor:
    """`(targets, rows)`: how fast each target grows with what a row's feature writes, `missing` of it taken away.

    The gradient by one number per row: nothing of the size of the gradients by MLP outputs is kept.
    """
    with torch.inference_mode(False), torch.enable_grad():
        taken = torch.full((len(behind),), -missing, device=behind.device, requires_grad=True)
        added = [taken[:, None, None] * part.clone() for part in parts]
        embeddings = _run(clip, behind.detach().clone(), first, added)
        values = torch.einsum("trd,rd->tr", directions.to(embeddings).clone(), embeddings)
        rows = [torch.autograd.grad(row.sum(), taken, retain_graph=t + 1 < len(values)) for t, row in enumerate(values)]
    return clip.logit_scale * torch.stack([slope for (slope,) in rows])


@torch.no_grad()
def ablation_effects(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    layer: int,
    features: Int[Tensor, " rows"],
    codes: Float[Tensor, "rows positions"],
    seen: Observation,
    images: Int[Tensor, " rows"],
    directions: Float[Tensor, "targets rows embed_dim"],
) -> Float[Tensor, "targets rows"]:
    """What really happens: target as it is minus target without what the feature writes, in the live model.

    Codes are those of the untouched model; everything after reacts.

    Args:
        clip: the backbone.
        clt: the transcoder.
        layer: the features' layer.
        features: `(rows,)` one feature a row.
        codes: `(rows, positions)` its codes.
        seen: the untouched model, with the stream behind block `layer`.
        images: `(rows,)` int64, which of its images each row is about.
        directions: `(targets, rows, embed_dim)`.

    Returns:
        `(targets, rows)`.
    """
    out = [_nothing(directions)]
    for rows in _chunks(clip, len(features)):
        parts = written(clt, layer, features[rows], codes[rows])
        without = embeddings_without(clip, clt, layer, parts, seen, images[rows])
        as_it_is = seen.embeddings[images[rows]]
        wanted = directions[:, rows].to(as_it_is)
        out.append(clip.logit_scale * torch.einsum("trd,rd->tr", wanted, as_it_is - without))
    return torch.cat(out, 1)


@torch.no_grad()
def embeddings_without(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    first: int,
    parts: Sequence[Float[Tensor, "rows positions d_model"]],
    seen: Observation,
    images: Int[Tensor, " rows"],
) -> Float[Tensor, "rows embed_dim"]:
    """Embeddings `(rows, embed_dim)` of the live model with something taken out of its MLP outputs.

    Args:
        clip: the backbone.
        clt: the transcoder.
        first: the first layer of which something is taken.
        parts: what is taken, `(rows, positions, d_model)` for each layer from `first` on: `written`, or a sum of it.
        seen: the untouched model, with the stream behind block `first`.
        images: `(rows,)` int64, which of its images each row is about.
    """
    behind = seen.streams[first + 1][images]
    return run_lanes([Added(clip, clt, first, [-part for part in parts], behind)])[0]


def integrated_effects(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    layer: int,
    features: Int[Tensor, " rows"],
    codes: Float[Tensor, "rows positions"],
    seen: Observation,
    images: Int[Tensor, " rows"],
    directions: Float[Tensor, "targets rows embed_dim"],
    nodes: int = NODES,
) -> Float[Tensor, "targets rows"]:
    """As `ablation_effects`, predicted by gradients along the path from the code to 0 (Sundararajan et al. 2017).

    Args:
        nodes: how many gradients; 1 is the one at half of the code.
    """
    total = [_nothing(directions)]
    for rows in _chunks(clip, len(features)):
        parts = written(clt, layer, features[rows], codes[rows])
        total.append(path_effects(clip, layer, parts, seen, images[rows], directions[:, rows], nodes))
    return torch.cat(total, 1)


def path_effects(
    clip: FrozenCLIP,
    first: int,
    parts: Sequence[Float[Tensor, "rows positions d_model"]],
    seen: Observation,
    images: Int[Tensor, " rows"],
    directions: Float[Tensor, "targets rows embed_dim"],
    nodes: int = NODES,
) -> Float[Tensor, "targets rows"]:
    """`(targets, rows)`: what some writing adds to targets, by gradients along the path to the model without it.

    Args:
        clip: the backbone.
        first: the first layer that is written to.
        parts: `(rows, positions, d_model)` what is written, for each layer from `first` on.
        seen: the untouched model, with the stream behind block `first`.
        images: `(rows,)` int64, which of its images each row is about.
        directions: `(targets, rows, embed_dim)`.
        nodes: how many gradients; 1 is the one half way.
    """
    effect, behind = directions.new_zeros(len(directions), len(parts[0])), seen.streams[first + 1][images]
    places, weights = np.polynomial.legendre.leggauss(nodes)
    for missing, weight in zip(((1 - places) / 2).tolist(), (weights / 2).tolist()):
        effect += weight * _slopes(clip, behind, first, directions, parts, missing).to(effect)
    return effect
