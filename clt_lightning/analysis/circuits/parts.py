"""What the linear tower needs to know of a Vision Transformer: plain tensors and sizes, whatever library it comes from.

A backbone family gives a `TowerParts` (a method `circuit_parts()` of the backbone, or `open_clip_parts.py`), and
nothing else of it is looked at. Tensors may be of any type and device; `attention_parts.cast` brings them to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from clt_lightning.backbone.attention_parts import AttentionParts, Linear, Norm, Run


@dataclass(frozen=True)
class MlpParts:
    """`down(norm(activation(up(x))))`, of one token at a time.

    Attributes:
        up: `(hidden, d_model)`.
        down: `(d_model, hidden)`.
        activation: elementwise; of the form `h * gate(h)` (GELU, QuickGELU, SiLU, ReLU), the gate being `activation(h)
            / h`, which `LibraGrad` holds.
        norm: over the hidden channels; None for none.
    """

    up: Linear
    down: Linear
    activation: Run
    norm: Norm | None = None


@dataclass(frozen=True)
class BlockParts:
    """A pre-norm residual block: attention, then MLP, each with its own norm, and a scale on what it adds.

    Attributes:
        norm_1: before the attention.
        attention: the attention.
        post_attention: a norm on the attention's output; None for none.
        scale_1: `(d_model,)` LayerScale on what the attention adds; None for 1.
        norm_2: before the MLP; its output is the site `mlp_in`.
        mlp: the MLP.
        scale_2: `(d_model,)` LayerScale on what the MLP adds; `scale_2 * mlp(x)` is the site `mlp_out`.
    """

    norm_1: Norm
    attention: AttentionParts
    norm_2: Norm
    mlp: MlpParts
    post_attention: Norm | None = None
    scale_1: Tensor | None = None
    scale_2: Tensor | None = None


@dataclass(frozen=True)
class ReadOutParts:
    """From the last residual stream to the embedding: a norm, a mean over some positions, a projection.

    Attributes:
        norm: the last norm; None for none.
        pool: `(positions,)` weights of the positions, 1 at [CLS] or equal ones over the patches.
        norm_after_pool: whether the norm comes after the pooling; else before it, position by position.
        projection: to the embedding; None for none.
        other: the whole read-out `(images, positions, d_model) -> (images, embed_dim)` where it is no such sum (pooling
            by attention, an MLP): only its tangent is known then. It must run in any floating-point type.
        unit: whether targets read the embedding divided by its norm, as CLIP's cosines do.
    """

    pool: Tensor
    norm: Norm | None = None
    norm_after_pool: bool = False
    projection: Linear | None = None
    other: Run | None = None
    unit: bool = True


@dataclass(frozen=True)
class TowerParts:
    """An image tower.

    Attributes:
        name: the backbone's, for messages.
        embed: preprocessed images `(images, 3, size, size)` to the residual stream at the entry of block 0, in the
            images' own type: patch and position embeddings, prefix tokens, and the norm before the blocks, if any.
        blocks: one per layer.
        read_out: the end.
        n_prefix: [CLS] and registers, which come before the patches.
        grid: patches as (rows, columns).
    """

    name: str
    embed: Run
    blocks: Sequence[BlockParts]
    read_out: ReadOutParts
    n_prefix: int
    grid: tuple[int, int]

    @property
    def n_positions(self) -> int:
        return self.n_prefix + self.grid[0] * self.grid[1]

    def position_names(self) -> list[str]:
        """`CLS`, `reg0`, ..., `r0c0`, ...: a name for every position."""
        prefix = ["CLS", *(f"reg{i}" for i in range(self.n_prefix - 1))][: self.n_prefix]
        return prefix + [f"r{row}c{column}" for row in range(self.grid[0]) for column in range(self.grid[1])]
