"""Small CLIPs and transcoders of every form, and a second implementation of the held tower by autograd."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clt_lightning.analysis.target import Target
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.transcoder import AbsTopK, BatchTopK, CrossLayerTranscoder, JumpReLU, ReLU, TopK
from clt_lightning.transcoder.activations import Activation
from tests.analysis import world

TOWERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer_scale": {"ls_init_value": 0.5},
    "qk_norm": {"qk_norm": True},
    "norm_former": {"scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True},
    "no_ln_pre": {"no_ln_pre": True},
    "average_pool": {"pool_type": "avg"},
    "norm_after_average": {"pool_type": "avg", "final_ln_after_pool": True},
}
ACTIVATIONS: dict[str, Activation] = {
    "ReLU": ReLU(),
    "TopK": TopK(4),
    "AbsTopK": AbsTopK(4),
    "BatchTopK": BatchTopK(4),
    "JumpReLU": JumpReLU(threshold=0.4),
}


def clip_of(tower: str, batch_first: bool = True) -> FrozenCLIP:
    """A tiny CLIP whose every part matters, its blocks either way round."""
    name = f"tiny-circuits-{tower.replace('_', '-')}"
    world.register(Path(tempfile.mkdtemp()), name, **TOWERS.get(tower, {}))
    clip = world.make_clip(name)
    if not batch_first:
        transformer = clip.model.visual.transformer
        transformer.batch_first = clip.family.batch_first = False
        for block in clip.blocks:
            attention: Any = block.attn
            attention.batch_first = False
    return clip


def clt_of(
    activation: str = "TopK", topology: str = "cross_layer", skip: bool = False, seed: int = 3
) -> CrossLayerTranscoder:
    """A transcoder with random weights."""
    clt = CrossLayerTranscoder(
        world.LAYERS,
        world.WIDTH,
        world.FEATURES,
        ACTIVATIONS[activation],
        topology,  # type: ignore[arg-type]
        skip,
        seed=2,
    )
    if activation == "BatchTopK":
        clt.activation.threshold.fill_(0.6)  # type: ignore[operator]
    if activation == "JumpReLU":
        with torch.no_grad():
            clt.activation.log_threshold.add_(0.2 * torch.randn(clt.activation.log_threshold.shape))  # type: ignore[operator, arg-type]
    return world.randomise(clt, seed)


def an_image(seed: int = 0) -> Tensor:
    """`(3, size, size)` float64."""
    image: Tensor = world.Images([seed])[0]["image"]
    return image.double()


def a_target(seed: int = 0, name: str = "made") -> Target:
    return Target(name, torch.randn(16, generator=torch.Generator().manual_seed(seed)), 3.0)


def library_embedding(clip: FrozenCLIP, image: Tensor) -> Tensor:
    """`(embed_dim,)`, not normalised: open_clip's own modules in float64."""
    visual = copy.deepcopy(clip.model.visual).double()
    with torch.no_grad():
        found: Tensor = visual(image[None].double())[0]
    return found


class Reference:
    """The held tower of a plain CLIP in float64 as a function of everything that is written, for autograd.

    Attention weights come from `nn.MultiheadAttention` itself, norm scales from `torch.var`.
    """

    def __init__(self, clip: FrozenCLIP, clt: CrossLayerTranscoder, image: Tensor, skip_nodes: bool) -> None:
        self.visual = copy.deepcopy(clip.model.visual).double()
        self.clt = copy.deepcopy(clt).double().eval()
        self.skip_nodes = skip_nodes
        with torch.no_grad():
            stream = self.root = self.visual._embeds(image[None].double())[0]
            self.patterns, self.stds = [], []
            xs, ys, streams = [], [], []
            for block in self.visual.transformer.resblocks:
                streams.append(stream)
                normed = block.ln_1(stream)[None]
                out, pattern = block.attn(normed, normed, normed, need_weights=True, average_attn_weights=False)
                middle = stream + block.ls_1(out[0])
                x = block.ln_2(middle)
                y = block.ls_2(block.mlp(x))
                self.patterns.append(pattern[0])
                self.stds.append((self._std(stream, block.ln_1), self._std(middle, block.ln_2)))
                xs.append(x)
                ys.append(y)
                stream = middle + y
            self.x, self.y, self.last = torch.stack(xs), torch.stack(ys), stream
            self.codes = self.clt.encode(self.x).dense()
            self.errors = self.y - self.clt.decode(self.codes, self.x)
            self.std_post = self._std(stream, self.visual.ln_post)
            embedding = self.visual.ln_post(stream)[0] @ self.visual.proj
            self.norm = embedding.norm()

    def _std(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()

    def _norm(self, x: Tensor, norm: nn.LayerNorm, std: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / std * norm.weight + norm.bias

    def pre_activations(self, codes: Tensor, errors: Tensor, skips: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations `(layers, positions, F)` and the unnormalised, held embedding from what is written."""
        stream, pres = root, []
        for layer, block in enumerate(self.visual.transformer.resblocks):
            attention = block.attn
            normed = self._norm(stream, block.ln_1, self.stds[layer][0])
            d = normed.shape[1]
            value = F.linear(normed, attention.in_proj_weight[2 * d :], attention.in_proj_bias[2 * d :])
            heads = value.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
            mixed = (self.patterns[layer] @ heads).transpose(0, 1).flatten(1)
            middle = stream + block.ls_1(attention.out_proj(mixed))
            x = self._norm(middle, block.ln_2, self.stds[layer][1])
            pres.append((x * self.clt.x_scale[layer]) @ self.clt.W_enc[layer].T + self.clt.b_enc[layer])
            y = self.clt.bias(layer) + errors[layer]
            if self.clt.W_skip is not None:
                y = y + (skips[layer] if self.skip_nodes else self.clt.skip_term(x, layer))
            for source in range(layer + 1):
                if self.clt.writes(source, layer):
                    y = y + codes[source] @ self.clt.W_dec[source][:, layer - source] * self.clt.y_scale[layer]
            stream = middle + y
        post = self._norm(stream, self.visual.ln_post, self.std_post)[0]
        return torch.stack(pres), post @ self.visual.proj
