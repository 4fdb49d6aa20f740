"""What a library's layout of Vision Transformers says about itself: a family is one file that fills this in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clt_lightning.backbone.attention_parts import AttentionParts
from clt_lightning.core.errors import UserError
from clt_lightning.core.tokens import TokenLayout


class At(Protocol):
    """`at(site, x, compute) -> tensor`: passes a site through the taps; `x` is what `compute()` starts from."""

    def __call__(self, site: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor: ...

    def wants(self, site: str) -> bool:
        """Whether anything reads or overrides a site, for such as are not made anyway."""
        ...


@dataclass(frozen=True)
class Readout:
    """How an embedding is read from the last block's [CLS]: a LayerNorm, then a linear map.

    Attributes:
        weight, bias: `(d_model,)` of the LayerNorm; `eps`: its epsilon.
        matrix: `(d_model, embed_dim)` the linear map; None for none.
        offset: `(embed_dim,)` its bias; None for none.
    """

    weight: Tensor
    bias: Tensor
    eps: float
    matrix: Tensor | None = None
    offset: Tensor | None = None

    @classmethod
    def of(cls, norm: nn.Module, matrix: Tensor | None = None, offset: Tensor | None = None) -> Readout | None:
        """Of a LayerNorm; None where the module is something else."""
        if not isinstance(norm, nn.LayerNorm) or norm.weight is None:
            return None
        bias = norm.bias if norm.bias is not None else torch.zeros_like(norm.weight)
        return cls(norm.weight.detach(), bias.detach(), norm.eps, matrix, offset)

    def directions(self, texts: Tensor) -> Tensor:
        """`(d_model, n)` float64: how `<embedding, text>` reads the stream, up to the LayerNorm's own scale.

        The mean that the LayerNorm takes off is linear, and taken off the directions.

        Args:
            texts: `(embed_dim, n)` directions in the space of embeddings.
        """
        through = self._back(texts.double())
        weighted = self.weight.double()[:, None] * through
        return weighted - weighted.mean(0)

    def constants(self, texts: Tensor) -> Tensor:
        """`(n,)` float64: what the biases add to `<embedding, text>` for `(embed_dim, n)` texts."""
        own = self.bias.double() @ self._back(texts.double())
        return own if self.offset is None else own + self.offset.double() @ texts.double()

    def scale(self, residual: Tensor) -> Tensor:
        """`(...)` float64: the LayerNorm's factor for residuals `(..., d_model)`."""
        return (residual.double().var(-1, correction=0) + self.eps).rsqrt()

    def embed(self, residual: Tensor) -> Tensor:
        """`(..., embed_dim)` float64: the embedding, not yet of length 1, of residuals `(..., d_model)`."""
        r = residual.double()
        normed = (r - r.mean(-1, keepdim=True)) * self.scale(r)[..., None] * self.weight.double() + self.bias.double()
        embedding = normed if self.matrix is None else normed @ self.matrix.double()
        return embedding if self.offset is None else embedding + self.offset.double()

    def _back(self, texts: Tensor) -> Tensor:
        return texts if self.matrix is None else self.matrix.double() @ texts


def square(size: tuple[int, int], name: str) -> int:
    """The side of a square.

    Raises:
        UserError: it is none.
    """
    if size[0] != size[1]:
        raise UserError(f"'{name}' reads images of {tuple(size)} pixels: only square ones are supported")
    return int(size[0])


class Family(ABC):
    """A Vision Transformer of one library, in parts.

    Attributes:
        model: the module.
        blocks: its residual blocks, first to last.
        norm: the norm over all tokens after the last block; None where there is none.
        tokens: which position is what.
        grid: patches as (rows, columns).
        d_model: width of the residual stream.
        embed_dim: size of the pooled embedding.
        image_size: side of the square input in pixels.
        batch_first: whether blocks take `(images, positions, d_model)`, not `(positions, images, d_model)`.
    """

    model: nn.Module
    blocks: list[nn.Module]
    norm: nn.Module | None
    tokens: TokenLayout
    grid: tuple[int, int]
    d_model: int
    embed_dim: int
    image_size: int
    batch_first: bool = True

    @abstractmethod
    def __init__(self, model: Any, name: str) -> None:
        """Takes a module apart; `name` is for messages."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """The model's own pooled embedding `(images, embed_dim)`, not normalised, from its own forward."""

    @abstractmethod
    def after(self, stream: Tensor) -> Tensor:
        """The same from the last block's output `(images, positions, d_model)`: last norm, pooling, projection."""

    @abstractmethod
    def norms(self, block: Any) -> tuple[nn.Module | None, nn.Module | None]:
        """The norms that a block's attention and MLP read the stream through; None where they read it as it is."""

    @abstractmethod
    def attention(self, block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the attention adds to the stream (LayerScale included); the rest is what the block was called with."""

    @abstractmethod
    def mlp(self, block: Any, x: Tensor) -> Tensor:
        """What the MLP adds to the stream (LayerScale included)."""

    def attention_parts(self, layer: int, name: str) -> AttentionParts:
        """The numbers of a block's attention, from which its pattern is made.

        Args:
            layer: the block.
            name: of the backbone, for messages.

        Raises:
            UserError: an attention of another form.
        """
        raise UserError(f"'{name}' is of the family {type(self).__name__}, whose attention's parts are not supported")

    def attention_at_cls(self, layer: int, x: Tensor) -> Tensor | None:
        """`attention` `(images, 1, d_model)` at [CLS] alone, which comes first, for half the work; None: not known how.

        Args:
            layer: the block.
            x: what its attention reads, `(images, positions, d_model)`.
        """
        return None

    def branch_scale(self, layer: int, branch: int) -> Tensor | None:
        """`(d_model,)`: the LayerScale on what a block's attention (1) or MLP (2) adds; None for none."""
        return None

    def head_outputs(self, block: Any) -> nn.Module | None:
        """The module that reads the outputs of all heads, one after the other; None where there is no such module."""
        return None

    def z_width(self, block: Any) -> int | None:
        """Size of `attn_z`, the outputs of all heads; None where a block has no such tensor."""
        module = self.head_outputs(block)
        return None if module is None else int(module.in_features)  # type: ignore[arg-type]

    def attend(self, block: Any, at: At, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As `attention`, with `attn_z` passed through `at`."""
        module = self.head_outputs(block)
        if module is None or not at.wants("attn_z"):
            return self.attention(block, x, *args, **kwargs)
        handle = module.register_forward_pre_hook(lambda _, given: (at("attn_z", given[0], lambda: given[0]),))
        try:
            return self.attention(block, x, *args, **kwargs)
        finally:
            handle.remove()

    def run_block(self, layer: int, at: At, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What calling a block gives, to the last bit, with every site passed through `at`."""
        block = self.blocks[layer]
        norm_1, norm_2 = self.norms(block)

        def branch(stream: Tensor) -> Tensor:
            read = at("attn_in", stream, lambda: stream if norm_1 is None else norm_1(stream))
            return at("attn_out", read, lambda: self.attend(block, at, read, *args, **kwargs))

        def whole() -> Tensor:
            mid = at("resid_mid", stream, lambda: stream + branch(stream))
            read = at("mlp_in", mid, lambda: mid if norm_2 is None else norm_2(mid))
            return mid + at("mlp_out", read, lambda: self.mlp(block, read))

        stream = at("resid_pre", x, lambda: x)
        return at("resid_post", stream, whole)

    def arguments(self, layer: int) -> dict[str, Any]:
        """What the model itself calls a block with, beside the stream."""
        return {}

    def run_blocks(self, first: int, stream: Tensor, end: int | None = None) -> Tensor:
        """Blocks `first` to `end - 1` (None: to the last), on `(images, positions, d_model)`."""
        end = len(self.blocks) if end is None else end
        if first >= end:
            return stream
        x = stream if self.batch_first else stream.transpose(0, 1)
        for layer in range(first, end):
            x = self.blocks[layer](x, **self.arguments(layer))
        return x if self.batch_first else x.transpose(0, 1)

    def readout(self) -> Readout | None:
        """How the embedding is read from [CLS]; None where other tokens are pooled or no LayerNorm is before it."""
        return None

    def classifier(self) -> nn.Linear | None:
        """The model's own linear classifier of embeddings; None where it has none."""
        return None

    def transform(self) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
        """The evaluation transform of images, and the mean and the standard deviation that it normalises by."""
        raise NotImplementedError
