"""Making the graph of one image: which nodes, in which order their rows are computed, and how rows become edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis.circuits.estimate import check_memory, clock, estimate, image_bytes
from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.circuits.image_model import Skip, model_of_image
from clt_lightning.analysis.circuits.layout import lay_out
from clt_lightning.analysis.circuits.making import Maker
from clt_lightning.analysis.target import Target
from clt_lightning.core.errors import UserError
from clt_lightning.core.say import say
from clt_lightning.transcoder import CrossLayerTranscoder

Positions = Literal["each", "summed"]
Tower = Literal["held", "tangent"]
#: Features that a graph has at most, if nothing else is asked for
MAX_NODES = 4096
#: Numbers of the stream that a batch of backwards holds at once
_BATCH_NUMBERS = 4_000_000


def attribute(
    clip: Any,
    clt: CrossLayerTranscoder,
    image: Float[Tensor, "*images 3 size size"] | PIL.Image.Image,
    target: Target | Sequence[Target],
    *,
    weights: Sequence[float] | None = None,
    positions: Positions = "each",
    max_nodes: int = MAX_NODES,
    skip: Skip = "node",
    tower: Tower = "held",
    dtype: torch.dtype = torch.float32,
    batch_size: int | None = None,
    progress: bool = False,
    about: dict[str, Any] | None = None,
) -> Graph:
    """The attribution graph of one image.

    Attention patterns, norm scales and the embedding's norm are held at the image's values, and so is which features
    fire: every pre-activation and every target is then a sum over what was written before it (docs/circuits.md).

    Args:
        clip: the backbone.
        clt: its transcoder.
        image: `(3, size, size)`, preprocessed, or a PIL image.
        target: what to explain, or several.
        weights: how much each target counts in influence; None: equal shares. Probabilities, for logits of classes.
        positions: `each`: a node is a feature at a position; `summed`: a feature at all its positions.
        max_nodes: at most so many features are nodes; the others, least influential, are summed to one node a layer.
        skip: `node`: what a transcoder's linear skip adds is a node at each position, not followed further; `through`:
            the stream passes it.
        tower: `held`: the books: everything is held, and edges add up. `tangent`: patterns, norms and gates move, to
            first order: what edges leave over is in the biases. For predictions of the live model (docs/circuits.md).
        dtype: float32; float64 for books that add up to 1e-10.
        batch_size: rows in one backward; None: as many as fit well.
        progress: say what it will cost, and how far it is.
        about: plain values to keep with the graph, such as the image's key.

    Raises:
        UserError: arguments that do not fit, an architecture that is not known, or too little memory.
    """
    began = clock()
    targets = (target,) if isinstance(target, Target) else tuple(target)
    shares = _weights(weights, len(targets))
    if positions not in ("each", "summed"):
        raise UserError(f"positions must be each or summed, got {positions!r}")
    for name, value in (("max_nodes", max_nodes), ("batch_size", 1 if batch_size is None else batch_size)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
    if tower not in ("held", "tangent"):
        raise UserError(f"tower must be held or tangent, got {tower!r}")
    model = model_of_image(clip, clt, image, dtype, skip, tower == "tangent")
    layout = lay_out(model.sources, positions == "summed")
    size = model.image.shape
    per_row = model.parts.n_positions * clt.d_model
    batch = batch_size or max(8, min(256, _BATCH_NUMBERS // per_row))
    maker = Maker(model, layout, targets, shares, min(batch, max(layout.n_features, 1)), max_nodes)
    expected = estimate(maker, began if progress else None)
    check_memory(expected, image_bytes(model), f"lower max_nodes ({max_nodes}), or sum positions")
    if progress:
        say(f"attribution: {expected}")
    graph = maker.make(progress)
    facts = {
        "backbone": model.parts.name,
        "grid": list(model.parts.grid),
        "n_prefix": model.parts.n_prefix,
        "n_layers": clt.n_layers,
        "n_features": clt.n_features,
        "topology": clt.topology,
        "linear_skip": clt.W_skip is not None,
        "image_size": size[-1],
        "active": expected.active,
        "max_nodes": max_nodes,
        "tower": tower,
        "dtype": str(dtype).removeprefix("torch."),
    }
    return replace(graph, about=facts | (about or {}) | {"seconds": clock() - began})


def top_targets(
    head: Float[Tensor, "embed_dim classes"],
    classnames: Sequence[str],
    embedding: Float[Tensor, "*one embed_dim"],
    share: float = 0.95,
    most: int = 10,
    scale: float = 100.0,
) -> tuple[list[Target], list[float]]:
    """The most probable classes, each against the mean of all, with their probabilities as weights.

    Args:
        head: `(embed_dim, classes)` unit columns.
        classnames: their names.
        embedding: `(embed_dim,)` of the image, unit.
        share: classes are taken until their probabilities reach it.
        most: at most so many.
        scale: from cosines to logits.
    """
    chances = (scale * (embedding.double() @ head.double().to(embedding.device))).softmax(0).cpu()
    order = chances.argsort(descending=True)
    n = min(int((chances[order].cumsum(0) < share).sum()) + 1, most, len(order))
    chosen = order[:n].tolist()
    return [Target.centred(head, classnames, c, scale) for c in chosen], chances[chosen].tolist()


def _weights(weights: Sequence[float] | None, n: int) -> Tensor:
    if n == 0:
        raise UserError("a graph needs at least one target")
    if weights is None:
        return torch.full((n,), 1.0 / n, dtype=torch.float64)
    if len(weights) != n or not all(0 <= w < float("inf") for w in weights) or not sum(weights) > 0:
        raise UserError(f"{n} targets need as many weights, none negative and not all 0; got {list(weights)}")
    return torch.tensor([float(w) for w in weights], dtype=torch.float64)
