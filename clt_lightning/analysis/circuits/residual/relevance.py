"""How much each feature of the residual stream matters to a target, and through whom: nodes and edges of one image.

The residual replacement model (RRM): sparse autoencoders rebuild the stream after the blocks, and between two of them
the tower is linear with attention patterns, norm scales and MLP gates held (LibraGrad's rule). A node is what a feature
adds against its baseline; an edge is the part of it that goes through one feature of the next layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import PIL.Image
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.analysis.circuits.faithful.baseline import Baseline
from clt_lightning.analysis.circuits.forward import Seen, see
from clt_lightning.analysis.circuits.image_model import prepared_image
from clt_lightning.analysis.circuits.linear import LinearTower
from clt_lightning.analysis.circuits.open_clip_parts import parts_of
from clt_lightning.analysis.circuits.parts import TowerParts
from clt_lightning.analysis.circuits.read_out import read_out_row, target_values
from clt_lightning.analysis.circuits.sources import encode
from clt_lightning.analysis.target import Target
from clt_lightning.backbone.attention_parts import cast
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.normalization import standardise

Rules = Literal["libragrad", "gradient"]
RULES = ("libragrad", "gradient")
#: Numbers of the stream that a batch of backwards holds at once
_BATCH_NUMBERS = 8_000_000


@dataclass(frozen=True)
class ResidualModel:
    """One image as the residual replacement model sees it.

    Attributes:
        clip: the backbone.
        sae: sparse autoencoders of the stream after some blocks.
        blocks: these blocks, by layer of the autoencoders.
        parts: the backbone's tower.
        seen: its forward of the image.
        codes: by layer, `(positions, F)`.
        sizes: `(layers, positions, 1)`: what a token's reconstruction is multiplied by.
        errors: `(layers, positions, d_model)`: the stream less what is rebuilt.
    """

    clip: Any
    sae: CrossLayerTranscoder
    blocks: tuple[int, ...]
    parts: TowerParts
    seen: Seen
    codes: list[Float[Tensor, "positions features"]]
    sizes: Float[Tensor, "layers positions 1"]
    errors: Float[Tensor, "layers positions d_model"]

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def streams(self) -> Float[Tensor, "layers positions d_model"]:
        """`(layers, positions, d_model)`: what is rebuilt."""
        return torch.stack([self.seen.streams[block + 1][0] for block in self.blocks])

    @cached_property
    def held(self) -> LinearTower:
        """The tower between the autoencoders, everything held."""
        return LinearTower(self.parts, self.seen, "libragrad")

    @cached_property
    def moving(self) -> LinearTower:
        """Its derivative, nothing held: plain gradients."""
        return LinearTower(self.parts, self.seen, "libragrad", tangent=True)

    def gradients(self, target: Target, rules: Rules = "libragrad") -> Float[Tensor, "layers positions d_model"]:
        """`(layers, positions, d_model)`: the target's gradient by what is rebuilt, through the whole stream."""
        tower = self.held if rules == "libragrad" else self.moving
        gradient = _down(tower, _at_the_end(self, target, rules), tower.n_layers - 1, self.blocks[-1])
        found = [gradient[0]]
        for high, low in zip(self.blocks[:0:-1], self.blocks[-2::-1]):
            gradient = _down(tower, gradient, high, low)
            found.append(gradient[0])
        return torch.stack(found[::-1])

    def decoders(self, layer: int) -> Float[Tensor, "features d_model"]:
        """`(F, d_model)`: what code 1 writes at a token of size 1."""
        like = self.errors
        W = self.sae.W_dec[layer].detach()[:, 0].to(like)
        result: Tensor = W * self.sae.y_scale[layer].to(like)
        return result

    def readers(self, layer: int, features: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """`(features, d_model)`: how codes move with the stream at a token of size 1, the size held."""
        like = self.errors
        rows: Tensor = self.sae.W_enc[layer].detach()[features].to(like) * self.sae.x_scale[layer].to(like)
        return rows - rows.mean(1, keepdim=True) if self.sae.normalization == "token" else rows


def explains_stream(clt: CrossLayerTranscoder) -> bool:
    """Whether a transcoder is autoencoders of the residual stream after blocks, and so has this model."""
    return clt.topology == "sae" and clt.sites.write == "resid_post"


@torch.no_grad()
def residual_model(
    clip: Any,
    sae: CrossLayerTranscoder,
    image: Float[Tensor, "*images 3 size size"] | PIL.Image.Image,
    dtype: torch.dtype = torch.float32,
) -> ResidualModel:
    """Run one image and hold what the linear model holds.

    Args:
        clip: the backbone.
        sae: of topology `sae` at `resid_post` of any blocks, on the same device.
        image: `(3, size, size)`, preprocessed, or a PIL image.
        dtype: float32, or float64 for books that add up to 1e-10.

    Raises:
        UserError: another kind of transcoder, or an image of another size.
    """
    blocks = check_fit(clip, sae)
    if not explains_stream(sae):
        raise UserError(
            f"the residual replacement model is made of autoencoders at resid_post; this transcoder is of topology "
            f"'{sae.topology}' at {sae.sites.write}: see configs/site/residual.yaml"
        )
    prepared = prepared_image(clip, image, dtype)
    with torch.inference_mode(False):
        parts = cast(parts_of(clip), dtype, clip.device)
        seen = see(parts, parts.embed(prepared))
        codes, sizes, errors = [], [], []
        for layer, block in enumerate(blocks):
            stream = seen.streams[block + 1][0]
            normal, mean, size = stream, stream.new_zeros(()), stream.new_ones(len(stream), 1)
            if sae.normalization == "token":
                normal, mean, size = standardise(stream)
            active = encode(sae, layer, normal)
            dense = stream.new_zeros(len(stream), sae.n_features)
            dense[active.positions, active.features] = active.values
            decoders = sae.W_dec[layer].detach()[:, 0].to(stream) * sae.y_scale[layer].to(stream)
            rebuilt = (dense @ decoders + sae.bias(layer, stream).detach()) * size + mean
            codes.append(dense)
            sizes.append(size)
            errors.append(stream - rebuilt)
    return ResidualModel(clip, sae, blocks, parts, seen, codes, torch.stack(sizes), torch.stack(errors))


@dataclass(frozen=True)
class LayerEdges:
    """Edges into one layer from the layer before it, in the target's units.

    Attributes:
        readers: `(readers,)` the features of the layer that are read.
        weight: `(readers, F + 1)`: what each feature of the layer before, and at last its error, adds to the target
            through the reader, against the baseline.
    """

    readers: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Relevance:
    """What the features of an image add to a target, against a baseline.

    Attributes:
        places: `(layers, positions, F + 1)`: of each feature and, last, of the error, at each position.
        edges: by layer l, the edges from l to l + 1; empty if they were not asked for.
        value: of the target.
    """

    places: Float[Tensor, "layers positions units"]
    edges: list[LayerEdges]
    value: float

    @property
    def nodes(self) -> Float[Tensor, "layers units"]:
        """`(layers, F + 1)`: summed over positions."""
        return self.places.sum(1)


@torch.no_grad()
def relevance(
    model: ResidualModel,
    target: Target,
    baseline: Baseline,
    *,
    errors: Literal["leaf", "through"] = "leaf",
    rules: Rules = "libragrad",
    edges: bool = True,
) -> Relevance:
    """Nodes and edges of one image.

    Args:
        model: the image.
        target: what is explained.
        baseline: what features and errors are compared with.
        errors: `leaf`: gradients go back through features alone, as the masked forward holds errors; then the edges out
            of a node sum to the node. `through`: through the whole stream, which is the target's own gradient.
        rules: `libragrad` holds patterns, norm scales, MLP gates and the embedding's norm; `gradient` holds nothing.
        edges: with `leaf` alone: keep them.

    Raises:
        UserError: arguments that cannot be, or a baseline of another size.
    """
    if errors not in ("leaf", "through") or rules not in RULES:
        raise UserError(f"errors are leaf or through, rules {' or '.join(RULES)}; got {errors!r} and {rules!r}")
    if edges and errors == "through":
        raise UserError("edges are of errors='leaf': with 'through', paths pass features by")
    against = changes_against(model, baseline)
    tower = model.held if rules == "libragrad" else model.moving
    value = float(target_values(model.parts, model.seen.embedding, target)[0])
    if errors == "through":
        by_stream = model.gradients(target, rules)
        places = [against.place(layer, gradient) for layer, gradient in enumerate(by_stream)]
        return Relevance(torch.stack(places), [], value)
    last = model.n_layers - 1
    gradient = _down(tower, _at_the_end(model, target, rules), tower.n_layers - 1, model.blocks[last])
    places = [against.place(last, gradient[0])]
    found: list[LayerEdges] = []
    for layer in range(last - 1, -1, -1):
        low, high = model.blocks[layer], model.blocks[layer + 1]
        by_code = _by_code(model, layer + 1, gradient[0])
        if edges:
            one, gradient = _edges(model, tower, layer, by_code, against)
            found.append(one)
        else:
            readers = torch.arange(model.sae.n_features, device=by_code.device)
            entering = (by_code @ model.readers(layer + 1, readers)) / model.sizes[layer + 1]
            gradient = _down(tower, entering[None], high, low)
        places.append(against.place(layer, gradient[0]))
    return Relevance(torch.stack(places[::-1]), found[::-1], value)


@torch.no_grad()
def input_edges(model: ResidualModel, target: Target) -> tuple[list[Tensor], LayerEdges]:
    """What goes through each feature altogether, and what the inputs add through those of the first layer.

    Args:
        model: the image.
        target: what is explained.

    Returns:
        by layer `(F,)`, the sum over positions of each code times what one more unit of it adds to the target (through
        features alone); and the edges from the entry of block 0 into the first layer: `weight` is `(readers, inputs)`,
        the prefix tokens one by one, then all patches together.
    """
    tower, last = model.held, model.n_layers - 1
    gradient = _down(tower, _at_the_end(model, target, "libragrad"), tower.n_layers - 1, model.blocks[last])
    through = []
    for layer in range(last, -1, -1):
        by_code = _by_code(model, layer, gradient[0])
        through.append((by_code * model.codes[layer]).sum(0).cpu())
        if layer:
            features = torch.arange(model.sae.n_features, device=by_code.device)
            entering = (by_code @ model.readers(layer, features)) / model.sizes[layer]
            gradient = _down(tower, entering[None], model.blocks[layer], model.blocks[layer - 1])
    readers = (by_code != 0).any(0).nonzero().flatten()
    root, rows = model.seen.streams[0][0], model.readers(0, readers)
    weights = [root.new_zeros(0, len(root))]
    for some in torch.arange(len(readers), device=root.device).split(max(1, _BATCH_NUMBERS // root.numel())):
        amount = by_code[:, readers[some]].T[:, :, None] / model.sizes[0]
        at_entry = _down(tower, amount * rows[some, None], model.blocks[0], -1)
        weights.append(torch.einsum("rpd,pd->rp", at_entry, root))
    placed, prefix = torch.cat(weights).cpu(), model.parts.n_prefix
    parts = [placed[:, :prefix], placed[:, prefix:].sum(1, keepdim=True)]
    return through[::-1], LayerEdges(readers.cpu(), torch.cat(parts if placed.shape[1] > prefix else parts[:1], 1))


def _at_the_end(model: ResidualModel, target: Target, rules: Rules) -> Tensor:
    """`(1, positions, d_model)`: the target's gradient by the last stream."""
    frozen = rules == "libragrad" and model.parts.read_out.other is None
    return (
        read_out_row(model.parts, model.seen, target, "frozen" if frozen else "tangent").gradient[None].to(model.errors)
    )


def _by_code(model: ResidualModel, layer: int, gradient: Tensor) -> Tensor:
    """`(positions, F)`: how the target moves with each active code, from its gradient by the stream there."""
    found = (gradient @ model.decoders(layer).T) * model.sizes[layer]
    return torch.where(model.codes[layer] != 0, found, 0.0)


def _edges(
    model: ResidualModel, tower: LinearTower, layer: int, by_code: Tensor, against: Changes
) -> tuple[LayerEdges, Tensor]:
    """The edges from a layer to the next, and the sum of all readers' gradients by the stream at the layer."""
    readers = (by_code != 0).any(0).nonzero().flatten()
    P, d = model.errors.shape[1:]
    rows = model.readers(layer + 1, readers)
    weights, total = [], model.errors.new_zeros(1, P, d)
    for some in torch.arange(len(readers), device=rows.device).split(max(1, _BATCH_NUMBERS // (P * d))):
        amount = by_code[:, readers[some]].T[:, :, None] / model.sizes[layer + 1]
        gradient = _down(tower, amount * rows[some, None], model.blocks[layer + 1], model.blocks[layer])
        weights.append(against.rows(layer, gradient))
        total += gradient.sum(0)
    empty = rows.new_zeros(0, model.sae.n_features + 1)
    return LayerEdges(readers.cpu(), torch.cat([empty, *weights]).cpu()), total


def _down(tower: LinearTower, gradient: Tensor, top: int, to: int) -> Tensor:
    """From gradients by the stream after block `top` to those by the stream after block `to`."""
    if top == to:
        return gradient
    for step in tower.pull(top, len(gradient), final=gradient):
        if step.place == "mlp" and step.layer == to:
            return step.gradient
        if step.place == "input" and to < 0:
            return step.gradient
    raise AssertionError(f"no block {to} below {top}")


class Changes:
    """An image's codes and errors less the baseline's: what is multiplied with gradients.

    Args:
        model: the image.
        baseline: of its autoencoders.
    """

    def __init__(self, model: ResidualModel, baseline: Baseline) -> None:
        self.model = model
        like = model.errors
        self.codes = [codes - baseline.codes[layer].to(like) for layer, codes in enumerate(model.codes)]
        self.errors = like - baseline.errors.to(like)
        #: by layer and position: features whose code differs from the baseline's
        self._some = [[row.nonzero().flatten() for row in layer] for layer in self.codes]

    def place(self, layer: int, gradient: Tensor) -> Tensor:
        """`(positions, F + 1)` from one gradient `(positions, d_model)` by the stream."""
        model = self.model
        features = (gradient @ model.decoders(layer).T) * model.sizes[layer] * self.codes[layer]
        return torch.cat([features, (gradient * self.errors[layer]).sum(1, keepdim=True)], 1)

    def rows(self, layer: int, gradients: Tensor) -> Tensor:
        """`(rows, F + 1)`, summed over positions, from `(rows, positions, d_model)`."""
        model = self.model
        decoders, size = model.decoders(layer), model.sizes[layer]
        out = gradients.new_zeros(len(gradients), model.sae.n_features + 1)
        for position, some in enumerate(self._some[layer]):
            amount = self.codes[layer][position, some] * size[position]
            out.index_add_(1, some, (gradients[:, position] @ decoders[some].T) * amount)
        out[:, -1] = torch.einsum("rpd,pd->r", gradients, self.errors[layer])
        return out


def changes_against(model: ResidualModel, baseline: Baseline) -> Changes:
    """An image's codes and errors against a baseline.

    Raises:
        UserError: the baseline is of another size.
    """
    shape = (model.n_layers, model.errors.shape[1], model.sae.n_features)
    if tuple(baseline.codes.shape) != shape or tuple(baseline.errors.shape) != tuple(model.errors.shape):
        raise UserError(
            f"the baseline is of codes {tuple(baseline.codes.shape)} and errors {tuple(baseline.errors.shape)}, "
            f"expected {shape} and {tuple(model.errors.shape)}"
        )
    return Changes(model, baseline)
