"""What attention adds, as nodes of a graph see it: features of an autoencoder of it, or units of sparse attention."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.image_model import ImageModel
from clt_lightning.analysis.circuits.linear import LinearTower
from clt_lightning.analysis.circuits.sources import Active, active_of, encode, encoder_rows
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.heads import HeadProjection
from clt_lightning.interventions.replacement import check_attention_fit
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention, SparseAttention, at_heads
from clt_lightning.transcoder.normalization import standardise


@dataclass(frozen=True)
class Reading:
    """How codes of one layer move with what lies below, many rows at once.

    Attributes:
        by_output: `(rows, positions, d_model)` gradients by what the attention adds; None where it is passed by.
        by_stream: the same by the stream at the block's entry; None where they read the attention's output.
        constants: `(rows,)`: the part of the codes that no node writes.
    """

    by_output: Tensor | None
    by_stream: Tensor | None
    constants: Tensor


class AttentionNodes(Protocol):
    """What attention adds in one image, in parts.

    Attributes:
        n_features: of a layer.
        active: by layer, features that fire.
        sizes: by layer, `(positions, 1)`: what a token's features are multiplied by.
        errors: `(layers, positions, d_model)`: what is left over.
        rest: `(layers, positions, d_model)`: what is rebuilt without any feature.
    """

    n_features: int
    active: list[Active]
    sizes: list[Tensor]
    errors: Tensor
    rest: Tensor

    def decoders(self, layer: int, features: Tensor) -> Tensor:
        """`(features, d_model)`: what code 1 writes at a token of size 1."""

    def reading(self, tower: LinearTower, layer: int, features: Tensor, positions: Tensor) -> Reading:
        """How the codes of features at positions, `(rows,)` each, come about."""


def nodes_of_attention(model: ImageModel, attention: AnyAttention) -> AttentionNodes:
    """Runs an autoencoder of attention, or sparse attention, on an image.

    Raises:
        UserError: an autoencoder of another site or not at all blocks, or units of another backbone or with patterns
            of their own.
    """
    check_attention_fit(model.clip, attention)
    if isinstance(attention, SparseAttention):
        return _Units(model, attention)
    return _Heads(model, attention) if at_heads(attention) else _Autoencoder(model, attention)


class _Autoencoder:
    """Features that read and write what attention adds, position by position."""

    def __init__(self, model: ImageModel, sae: CrossLayerTranscoder) -> None:
        seen = model.seen
        self.sae, self.n_features = sae, sae.n_features
        self.like = seen.streams[0]
        self.active, self.sizes = [], []
        errors, rests = [], []
        for layer in range(sae.n_layers):
            out = seen.middles[layer][0] - seen.streams[layer][0]
            own = self.own(model, layer, out)
            normal, mean, size = own, own.new_zeros(()), own.new_ones(len(own), 1)
            if sae.normalization == "token":
                normal, mean, size = standardise(own)
            found = encode(sae, layer, normal)
            written = torch.zeros_like(out).index_add_(
                0,
                found.positions,
                self.decoders(layer, found.features).to(out) * found.values[:, None] * size[found.positions],
            )
            rest = self.added(layer, sae.bias(layer, own).detach() * size + mean)
            self.active.append(found)
            self.sizes.append(size)
            errors.append(out - rest - written)
            rests.append(rest)
        self.errors, self.rest = torch.stack(errors), torch.stack(rests)

    def own(self, model: ImageModel, layer: int, out: Tensor) -> Tensor:
        """What is read and rebuilt, `(positions, width)`, where the attention adds `out`."""
        return out

    def added(self, layer: int, rebuilt: Tensor) -> Tensor:
        """What the attention adds where this is rebuilt, `(positions, d_model)`."""
        return rebuilt

    def decoders(self, layer: int, features: Tensor) -> Tensor:
        rows = self.sae.W_dec[layer].detach()[features, 0].to(self.like)
        result: Tensor = rows * self.sae.y_scale[layer].to(rows)
        return result

    def reading(self, tower: LinearTower, layer: int, features: Tensor, positions: Tensor) -> Reading:
        gradient, rows, bias = self.readers(layer, features, positions)
        always = tower.constants(layer)[0][0]  # what attention adds whatever the stream is
        return Reading(gradient, None, (rows * always[positions]).sum(1) + bias)

    def readers(self, layer: int, features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(rows, positions, width)` gradients by what is read; these at the rows' own positions; and the biases."""
        rows = encoder_rows(self.sae, layer, features, self.errors)
        if self.sae.normalization == "token":  # a token's size is held, its mean is not
            rows = rows - rows.mean(1, keepdim=True)
        rows = rows / self.sizes[layer][positions]
        gradient = rows.new_zeros(len(rows), self.errors.shape[1], rows.shape[1])
        gradient[torch.arange(len(rows), device=rows.device), positions] = rows
        return gradient, rows, self.sae.b_enc[layer].detach()[features].to(rows)


class _Heads(_Autoencoder):
    """Features of the heads' outputs, which the model's own projection reads."""

    def __init__(self, model: ImageModel, sae: CrossLayerTranscoder) -> None:
        self.project = HeadProjection(model.clip)
        self.project.check()
        super().__init__(model, sae)

    def own(self, model: ImageModel, layer: int, out: Tensor) -> Tensor:
        return model.tower.blocks[layer].heads(model.seen.streams[layer])[0]

    def added(self, layer: int, rebuilt: Tensor) -> Tensor:
        return rebuilt @ self.project.weight(layer, rebuilt).T + self.project.bias(layer, rebuilt)

    def decoders(self, layer: int, features: Tensor) -> Tensor:
        rows = super().decoders(layer, features)
        return rows @ self.project.weight(layer, rows).T

    def reading(self, tower: LinearTower, layer: int, features: Tensor, positions: Tensor) -> Reading:
        gradient, rows, bias = self.readers(layer, features, positions)
        block = tower.blocks[layer]
        always = block.heads(torch.zeros_like(self.like))[0]
        return Reading(None, block.read_heads_adjoint(gradient), (rows * always[positions]).sum(1) + bias)


class _Units:
    """Units of sparse attention: they read the normed stream at the keys, by the patterns that are held."""

    def __init__(self, model: ImageModel, attention: SparseAttention) -> None:
        if attention.d_qk is not None:
            raise UserError(
                "a graph holds the model's own attention patterns, and these units have patterns of their own "
                f"(d_qk={attention.d_qk}): take units that move by the model's"
            )
        seen = model.seen
        self.units = copy.deepcopy(attention).to(seen.streams[0]).eval().requires_grad_(False)
        self.n_features = attention.n_features
        self.active, self.sizes = [], []
        errors, rests = [], []
        for layer, block in enumerate(model.parts.blocks):
            held, stream = seen.held[layer], seen.streams[layer]
            out = (seen.middles[layer] - stream)[0]
            pre = self.units.pre_activations(layer, block.norm_1(stream, held.norm_1), held.pattern)
            found = active_of(self.units.activation, layer, pre)
            written = torch.zeros_like(out).index_add_(
                0, found.positions, self.decoders(layer, found.features) * found.values[:, None]
            )
            rest = self.units.bias(layer).expand_as(out)
            self.active.append(found)
            self.sizes.append(out.new_ones(len(out), 1))
            errors.append(out - rest - written)
            rests.append(rest)
        self.errors, self.rest = torch.stack(errors), torch.stack(rests)

    def decoders(self, layer: int, features: Tensor) -> Tensor:
        return self.units.writes(layer, features)

    def reading(self, tower: LinearTower, layer: int, features: Tensor, positions: Tensor) -> Reading:
        block = tower.blocks[layer]
        readers = self.units.readers(layer, features)
        weights = block.held.pattern[0][self.units.head_of[features], positions]  # (rows, keys)
        by_stream = block.part.norm_1.adjoint(weights[..., None] * readers[:, None], block.held.norm_1)
        constants = self.units.b_enc[layer][features]
        if block.part.norm_1.bias is not None:  # each row of a pattern sums to 1
            constants = constants + readers @ block.part.norm_1.bias
        return Reading(None, by_stream, constants)
