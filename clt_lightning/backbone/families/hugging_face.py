"""Vision Transformers in the layouts of transformers: ViT and DeiT, Dinov2 with and without registers, CLIP, SigLIP.

Known by the names of their parts, in its older and newer releases; the package itself is not needed.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import transforms

from clt_lightning.backbone.families.base import At, Family, Readout, square
from clt_lightning.core.errors import UserError
from clt_lightning.core.tokens import TokenLayout

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_NORM_1 = ("layernorm_before", "norm1", "layer_norm1")
_NORM_2 = ("layernorm_after", "norm2", "layer_norm2")
_ATTENTION = ("attention", "self_attn")
#: The projection behind the heads, within the attention
_PROJECTION = ("o_proj", "out_proj", "output.dense", "projection_layer")
#: What holds the tower in a model with a head or a text side
_TOWERS = ("vision_model", "vit", "dinov2", "dinov2_with_registers", "deit", "base_model")


def _one(module: Any, names: tuple[str, ...]) -> Any:
    """The first of some children that a module has; None for none."""
    return next((found for name in names if isinstance(found := getattr(module, name, None), nn.Module)), None)


class HuggingFaceViT(Family):
    """A tower of `embeddings`, blocks and a last norm. The embedding is the model's own pooled output, or [CLS]."""

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.tower = tower = _tower_of(model)
        config = tower.config
        self.blocks = list(_blocks_of(tower))
        side = config.image_size
        self.image_size = square(tuple(side) if isinstance(side, list | tuple) else (side, side), name)
        patch = config.patch_size
        rows = self.image_size // int(patch[0] if isinstance(patch, list | tuple) else patch)
        self.grid = (rows, rows)
        self.d_model = int(config.hidden_size)
        self.pre_norm = _one(tower, ("pre_layrnorm",)) is not None
        self.pooled_norm = _one(tower, ("post_layernorm",)) if self.pre_norm else None  # CLIP's, over [CLS] alone
        self.norm = None if self.pre_norm else _one(tower, ("layernorm", "norm", "post_layernorm"))
        self.tokens = self._layout(config)
        self.projection = getattr(model, "visual_projection", None)
        self.in_tuples = self._gives_tuples()
        self.embed_dim = self.d_model if self.projection is None else int(self.projection.out_features)
        for block in self.blocks:
            parts = _one(block, _NORM_1), _one(block, _NORM_2), _one(block, _ATTENTION)
            if None in parts or (_one(block, ("mlp",)) is None and _one(block, ("intermediate",)) is None):
                raise UserError(
                    f"'{name}' has blocks of kind {type(block).__name__}: two norms, an attention and an MLP were "
                    "looked for, and not all of them found"
                )

    @classmethod
    def fits(cls, model: Any) -> bool:
        tower = _tower_of(model)
        config = getattr(tower, "config", None)
        named = all(hasattr(config, key) for key in ("hidden_size", "image_size", "patch_size"))
        return named and hasattr(tower, "embeddings") and len(_blocks_of(tower)) > 0

    @torch.no_grad()
    def _gives_tuples(self) -> bool:
        """Whether blocks give `(stream,)`, as those of older releases do."""
        weight = next(self.blocks[0].parameters())
        stream = torch.zeros(1, self.tokens.n_positions, self.d_model, dtype=weight.dtype, device=weight.device)
        return isinstance(self.blocks[0](stream, *_arguments(self.blocks[0])), tuple)

    def _layout(self, config: Any) -> TokenLayout:
        n_patches = self.grid[0] * self.grid[1]
        embeddings: Any = self.tower.embeddings
        has_cls = any(getattr(embeddings, name, None) is not None for name in ("cls_token", "class_embedding"))
        registers = int(getattr(config, "num_register_tokens", 0) or 0)
        distilled = int(getattr(embeddings, "distillation_token", None) is not None)
        return TokenLayout(n_patches, has_cls, registers + distilled, bool(getattr(config, "registers_last", False)))

    def encode(self, images: Tensor) -> Tensor:
        out = self.tower(images)
        if not hasattr(out, "last_hidden_state"):  # a tower that gives maps of features, for a dense head
            return self.after(self.run_blocks(0, self.tower.embeddings(images)))
        pooled = getattr(out, "pooler_output", None)
        pooled = self._pick(out.last_hidden_state) if pooled is None else pooled
        return pooled if self.projection is None else self.projection(pooled)

    def after(self, stream: Tensor) -> Tensor:
        tokens = stream if self.norm is None else self.norm(stream)
        pooled = self._pick(tokens)
        if self.pooled_norm is not None:
            pooled = self.pooled_norm(pooled)
        pooler = _one(self.tower, ("pooler", "head"))
        if pooler is not None:
            pooled = pooler(tokens)
        return pooled if self.projection is None else self.projection(pooled)

    def _pick(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] if self.tokens.has_cls else tokens[:, self.tokens.span("patch")].mean(1)

    def norms(self, block: Any) -> tuple[nn.Module | None, nn.Module | None]:
        return _one(block, _NORM_1), _one(block, _NORM_2)

    def attention(self, block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # masks (of tokens, of heads, CLIP's causal one), which are None, and what to give beside the stream
        if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
            raise UserError("masked tokens or heads are not supported: run the model without a mask")
        attention: Any = _one(block, _ATTENTION)
        found = attention(x)
        y = found[0] if isinstance(found, tuple) else found
        return _passed(block, y, "layer_scale1", "dropout")

    def head_outputs(self, block: Any) -> nn.Module | None:
        attention: Any = _one(block, _ATTENTION)
        linears = {name: module for name, module in attention.named_modules() if isinstance(module, nn.Linear)}
        return next((linears[name] for name in _PROJECTION if name in linears), None)

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        if _one(block, ("mlp",)) is not None:
            return _passed(block, block.mlp(x), "layer_scale2", "dropout")
        # the older layout adds the stream inside `output`
        found: Tensor = block.output.dropout(block.output.dense(block.intermediate(x)))
        return found

    def run_block(self, layer: int, at: At, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        found = super().run_block(layer, at, x, *args, **kwargs)
        return (found,) if self.in_tuples else found

    def run_blocks(self, first: int, stream: Tensor, end: int | None = None) -> Tensor:
        for block in self.blocks[first:end]:
            found = block(stream, *_arguments(block))
            stream = found[0] if isinstance(found, tuple) else found
        return stream

    def readout(self) -> Readout | None:
        norm = self.pooled_norm if self.pre_norm else self.norm
        if norm is None or not self.tokens.has_cls or _one(self.tower, ("pooler", "head")) is not None:
            return None
        matrix = None if self.projection is None else self.projection.weight.detach().T
        return Readout.of(norm, matrix)

    def classifier(self) -> nn.Linear | None:
        head = getattr(self.model, "classifier", None)
        return head if isinstance(head, nn.Linear) and head.in_features == self.embed_dim else None

    def transform(self) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
        mean, std = OPENAI if self.pre_norm else IMAGENET if "dino" in type(self.tower).__name__.lower() else HALF
        steps = [
            transforms.Resize(self.image_size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(self.image_size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
        return transforms.Compose(steps), mean, std


def _tower_of(model: Any) -> Any:
    while not hasattr(model, "embeddings"):
        inner = _one(model, _TOWERS)
        if inner is None or inner is model:
            return model
        model = inner
    return model


def _blocks_of(tower: Any) -> Any:
    for holder in (getattr(tower, "encoder", None), tower):
        for name in ("layer", "layers"):
            found = getattr(holder, name, None)
            if isinstance(found, nn.ModuleList):
                return found
    return ()


def _passed(block: Any, y: Tensor, *names: str) -> Tensor:
    """Through some children of a block, those that it has."""
    for name in names:
        module = getattr(block, name, None)
        y = module(y) if isinstance(module, nn.Module) else y
    return y


def _arguments(block: Any) -> list[None]:
    """What a block must be given beside the stream: masks, of which an image's tokens have none."""
    parameters = list(inspect.signature(type(block).forward).parameters.values())[2:]
    return [None for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
