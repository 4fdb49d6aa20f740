"""The image tower in pieces: what one forward saw, and the rest of a forward from any layer on.

Evaluations run many variants of the same images that differ only from some layer on; what comes before is computed
once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.clip import FrozenCLIP
from clt_lightning.core.errors import UserError


@dataclass(frozen=True)
class Observation:
    """What one forward of the tower saw.

    Attributes:
        streams: the residual stream at the entry of every block, `(images, positions, d_model)` each.
        attention: what each block's attention added at [CLS], `(images, d_model)` each.
        before_mlp: the stream that `ln_2` of some layers read, by layer, `(images, positions, d_model)`.
        x: MLP inputs, `(layers, tokens, d_model)`.
        y: MLP outputs (or what was added in their place), same shape.
        embeddings: unit-norm `(images, embed_dim)` fp32.
    """

    streams: list[Tensor]
    attention: list[Tensor]
    before_mlp: dict[int, Tensor]
    x: Tensor
    y: Tensor
    embeddings: Tensor

    @property
    def n_images(self) -> int:
        return len(self.embeddings)

    def select(self, chosen: Tensor) -> Observation:
        """Some of the images.

        Args:
            chosen: `(images,)` bool.
        """
        tokens = chosen.repeat_interleave(self.x.shape[1] // self.n_images)
        return Observation(
            [stream[chosen] for stream in self.streams],
            [part[chosen] for part in self.attention],
            {layer: stream[chosen] for layer, stream in self.before_mlp.items()},
            self.x[:, tokens],
            self.y[:, tokens],
            self.embeddings[chosen],
        )


def observe(clip: FrozenCLIP, images: Tensor, before_mlp: Iterable[int] = ()) -> Observation:
    """Run images through the tower and keep the stream; an active `replaced` or `mlp_override` holds in it.

    Args:
        clip: the backbone.
        images: `(images, 3, size, size)`, preprocessed.
        before_mlp: layers whose stream before the MLP is kept as well.
    """
    streams: list[Tensor] = []
    attention: list[Tensor] = []
    kept: dict[int, Tensor] = {}
    handles = []
    try:
        for layer, module in enumerate(clip.blocks):
            block: Any = module
            handles.append(block.register_forward_pre_hook(lambda m, args: streams.append(_image_major(clip, args[0]))))
            handles.append(
                block.ls_1.register_forward_hook(lambda m, i, out: attention.append(_image_major(clip, out)[:, 0]))
            )
            if layer in set(before_mlp):
                handles.append(block.ln_2.register_forward_pre_hook(_keep(clip, kept, layer)))
        acts = clip.capture(images, embeddings=True)
    finally:
        for handle in handles:
            handle.remove()
    assert acts.embeddings is not None
    return Observation(streams, attention, kept, acts.x, acts.y, acts.embeddings)


def finish(clip: FrozenCLIP, stream: Tensor, first: int, grad: bool = False) -> Tensor:
    """The rest of a forward: blocks `first` to the last, pooling, projection.

    Args:
        clip: the backbone; an active `replaced` or `mlp_override` holds in the blocks that are run.
        stream: `(images, positions, d_model)` at the entry of block `first`; `first == n_layers` runs no block.
        grad: let gradients flow to the stream and to what an override puts in.

    Returns:
        unit-norm `(images, embed_dim)` fp32: for an unchanged stream the numbers of `encode_image`.
    """
    # the backbone's own precision and autocast rules, as in its own forwards
    with clip.running(grad):
        x = _blocks(clip, stream, first, clip.n_layers)
        visual = clip.model.visual
        pooled = _pool(clip, visual, x)
        if visual.proj is not None:
            pooled = pooled @ visual.proj
        return F.normalize(pooled.float(), dim=-1)


def advance(clip: FrozenCLIP, stream: Tensor, first: int, last: int) -> Tensor:
    """`(images, positions, d_model)` at the entry of block `last`, from that at the entry of block `first`."""
    with clip.running(grad=False):
        return _blocks(clip, stream, first, last)


def _blocks(clip: FrozenCLIP, stream: Tensor, first: int, last: int) -> Tensor:
    x = stream.to(clip.dtype)
    if first < last:
        x = x if clip.batch_first else x.transpose(0, 1)
        for block in clip.blocks[first:last]:
            x = block(x)
        x = x if clip.batch_first else x.transpose(0, 1)
    return x


def reads_cls_only(clip: FrozenCLIP) -> bool:
    """Whether the embedding is made of the last [CLS] token alone (OpenAI's CLIP), so that no other matters there."""
    visual = clip.model.visual
    return getattr(visual, "attn_pool", None) is None and getattr(visual, "pool_type", "tok") == "tok"


def _pool(clip: FrozenCLIP, visual: Any, x: Tensor) -> Tensor:
    if hasattr(visual, "_pool"):
        return visual._pool(x)[0]
    if getattr(visual, "attn_pool", None) is not None:  # only releases of open_clip before _pool
        raise UserError(f"'{clip.name}' pools by attention: this needs a newer open_clip (3.0 or later)")
    if getattr(visual, "final_ln_after_pool", False):
        return visual.ln_post(visual._global_pool(x)[0])
    return visual._global_pool(visual.ln_post(x))[0]


def _image_major(clip: FrozenCLIP, tokens: Tensor) -> Tensor:
    return tokens if clip.batch_first else tokens.transpose(0, 1)


def _keep(clip: FrozenCLIP, kept: dict[int, Tensor], layer: int) -> Any:
    def hook(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        kept[layer] = _image_major(clip, args[0])

    return hook
