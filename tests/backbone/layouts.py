"""Small Vision Transformers with the parts and names that the package transformers gives them, old and new releases.

Written down here since that package is large, and an optional extra.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, SIDE, PATCH, DEPTH = 32, 2, 32, 8, 3


class Attention(nn.Module):
    """Gives a tuple, as all of them do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        n, p, _ = hidden_states.shape
        q, k, v = self.qkv(hidden_states).view(n, p, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(n, p, WIDTH)), None


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor) -> Tensor:
        found: Tensor = self.fc2(F.gelu(self.fc1(hidden_states)))
        return found


class Intermediate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.gelu(self.dense(hidden_states))


class Output(nn.Module):
    """The old layout's second half of the MLP, with the residual addition inside."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.dropout = nn.Linear(2 * WIDTH, WIDTH), nn.Dropout(0.1)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        found: Tensor = self.dropout(self.dense(hidden_states)) + input_tensor
        return found


class OldViTLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.intermediate, self.output = Attention(), Intermediate(), Output()
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(
        self, hidden_states: Tensor, head_mask: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor]:
        hidden_states = self.attention(self.layernorm_before(hidden_states))[0] + hidden_states
        return (self.output(self.intermediate(self.layernorm_after(hidden_states)), hidden_states),)


class NewViTLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp, self.dropout = Attention(), Mlp(), nn.Dropout(0.1)
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        found, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
        hidden_states = self.dropout(found) + hidden_states
        added: Tensor = self.dropout(self.mlp(self.layernorm_after(hidden_states))) + hidden_states
        return added


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(WIDTH))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states * self.lambda1


class Dinov2Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mlp, self.drop_path = Attention(), Mlp(), nn.Identity()
        self.layer_scale1, self.layer_scale2 = LayerScale(), LayerScale()

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        found, _ = self.attention(self.norm1(hidden_states), attention_mask=attention_mask, **kwargs)
        hidden_states = self.drop_path(self.layer_scale1(found)) + hidden_states
        added: Tensor = self.drop_path(self.layer_scale2(self.mlp(self.norm2(hidden_states)))) + hidden_states
        return added


class CLIPEncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), Mlp()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        found, _ = self.self_attn(hidden_states=self.layer_norm1(hidden_states), attention_mask=attention_mask)
        hidden_states = hidden_states + found
        added: Tensor = hidden_states + self.mlp(self.layer_norm2(hidden_states))
        return added


class Embeddings(nn.Module):
    """Patches, [CLS] and registers; [CLS] is called `cls_token`, or `class_embedding` in CLIP."""

    def __init__(self, cls_name: str | None, registers: int, registers_last: bool) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        n = (SIDE // PATCH) ** 2
        self.cls_name, self.registers_last = cls_name, registers_last
        if cls_name is not None:
            setattr(self, cls_name, nn.Parameter(torch.randn(WIDTH)))
        self.position_embeddings = nn.Parameter(torch.randn(1, n + (cls_name is not None), WIDTH))
        self.register_tokens = nn.Parameter(torch.randn(1, registers, WIDTH))

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.projection(pixel_values).flatten(2).transpose(1, 2)
        n = len(x)
        if self.cls_name is not None:
            x = torch.cat([getattr(self, self.cls_name).expand(n, 1, -1), x], 1)
        x = x + self.position_embeddings
        registers = self.register_tokens.expand(n, -1, -1)
        if self.registers_last:
            return torch.cat([x, registers], 1)
        return torch.cat([x[:, :1], registers, x[:, 1:]], 1) if registers.shape[1] else x


class Tower(nn.Module):
    """A model of transformers' without a head: `last_hidden_state` and `pooler_output`."""

    def __init__(
        self,
        layer: type[nn.Module],
        cls_name: str | None = "cls_token",
        registers: int = 0,
        registers_last: bool = False,
        nested: str = "encoder.layer",
        post: str = "layernorm",
    ) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=WIDTH, image_size=SIDE, patch_size=PATCH)
        if registers:
            self.config.num_register_tokens = registers
            self.config.registers_last = registers_last
        self.embeddings = Embeddings(cls_name, registers, registers_last)
        self.is_clip = post == "post_layernorm" and cls_name is not None
        if self.is_clip:
            self.pre_layrnorm = nn.LayerNorm(WIDTH)
        layers = nn.ModuleList(layer() for _ in range(DEPTH))
        if "." in nested:
            self.encoder = nn.Module()
            setattr(self.encoder, nested.split(".")[1], layers)
        else:
            setattr(self, nested, layers)
        object.__setattr__(self, "_layers_again", list(layers))
        setattr(self, post, nn.LayerNorm(WIDTH))
        self.post = post

    def forward(self, pixel_values: Tensor) -> Any:
        x = self.embeddings(pixel_values)
        x = self.pre_layrnorm(x) if self.is_clip else x
        for layer in self.__dict__["_layers_again"]:
            x = layer(x, None)
            x = x[0] if isinstance(x, tuple) else x
        norm = getattr(self, self.post)
        if self.is_clip:
            return SimpleNamespace(last_hidden_state=x, pooler_output=norm(x[:, 0]))
        return SimpleNamespace(last_hidden_state=norm(x), pooler_output=None)


class WithProjection(nn.Module):
    """CLIP's tower with its projection."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = tower, nn.Linear(WIDTH, 24, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        found: Tensor = self.visual_projection(self.vision_model(pixel_values).pooler_output)
        return found
