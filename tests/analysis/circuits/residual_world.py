"""Autoencoders of random weights on a tiny CLIP's stream, and a second implementation of the held tower by autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.analysis.circuits.faithful import Baseline, Features
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.transcoder import CrossLayerTranscoder
from tests.analysis import world
from tests.analysis.circuits.circuit_world import ACTIVATIONS


def sae_of(
    activation: str = "TopK", normalize: str = "token", layers: list[int] | None = None, site: str = "resid_post"
) -> CrossLayerTranscoder:
    """Random weights, biases and scales."""
    n = world.LAYERS if layers is None else len(layers)
    sae = CrossLayerTranscoder(
        n,
        world.WIDTH,
        world.FEATURES,
        ACTIVATIONS[activation],
        "sae",
        seed=2,
        sites=cl.Sites(read=site, layers=layers),  # type: ignore[arg-type]
        normalize=normalize,  # type: ignore[arg-type]
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in (*sae.W_dec, sae.b_dec, sae.b_enc):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
        sae.x_scale.copy_(torch.tensor([1.5, 0.7, 1.1])[:n])
        sae.y_scale.copy_(torch.tensor([0.8, 1.2, 1.4])[:n])
        sae.normalized.fill_(True)
    if activation == "BatchTopK":
        sae.activation.threshold.fill_(0.6)  # type: ignore[operator]
    return sae.eval()


def made_baseline(clip: FrozenCLIP, sae: CrossLayerTranscoder, seed: int = 0) -> Baseline:
    """Numbers of no meaning: half of the codes 0."""
    generator = torch.Generator().manual_seed(seed)
    zeros = Baseline.zeros(clip, Features(clip, sae))
    codes = torch.randn(zeros.codes.shape, generator=generator).clamp(min=0) * 0.3
    return Baseline("mean", codes, torch.randn(zeros.errors.shape, generator=generator) * 0.1, 1)


def batches(seeds: list[int], size: int = 4) -> Any:
    """A function that begins a pass over noise images."""
    images = [world.Images([seed])[0] for seed in seeds]
    stacked = torch.stack([image["image"] for image in images])

    def passes() -> Any:
        return ({"image": part} for part in stacked.split(size))

    return passes


class HeldStream:
    """The tower between the autoencoders as a function of codes and errors, in float64, from open_clip's own modules.

    Attention weights come from `nn.MultiheadAttention`, gates from the MLP's own activation.
    """

    def __init__(self, clip: FrozenCLIP, image: Tensor) -> None:
        import copy

        self.visual = copy.deepcopy(clip.model.visual).double()
        self.patterns, self.stds, self.gates, self.streams = [], [], [], []
        with torch.no_grad():
            stream = self.visual._embeds(image[None].double())[0]
            for block in self.visual.transformer.resblocks:
                self.streams.append(stream)
                normed = block.ln_1(stream)[None]
                out, pattern = block.attn(normed, normed, normed, need_weights=True, average_attn_weights=False)
                middle = stream + block.ls_1(out[0])
                hidden = block.mlp.c_fc(block.ln_2(middle))
                self.patterns.append(pattern[0])
                self.stds.append((self._std(stream, block.ln_1), self._std(middle, block.ln_2)))
                self.gates.append(block.mlp.gelu(hidden) / hidden)
                stream = middle + block.ls_2(block.mlp(block.ln_2(middle)))
            self.streams.append(stream)
            self.std_post = self._std(stream, self.visual.ln_post)
            self.norm = (self.visual.ln_post(stream)[0] @ self.visual.proj).norm()

    def _std(self, x: Tensor, norm: Any) -> Tensor:
        result: Tensor = (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        return result

    def _norm(self, x: Tensor, norm: Any, std: Tensor) -> Tensor:
        result: Tensor = (x - x.mean(-1, keepdim=True)) / std * norm.weight + norm.bias
        return result

    def block(self, index: int, stream: Tensor) -> Tensor:
        """One block, held."""
        block = self.visual.transformer.resblocks[index]
        attention = block.attn
        normed = self._norm(stream, block.ln_1, self.stds[index][0])
        d = normed.shape[1]
        value = torch.nn.functional.linear(normed, attention.in_proj_weight[2 * d :], attention.in_proj_bias[2 * d :])
        heads = value.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
        middle = stream + attention.out_proj((self.patterns[index] @ heads).transpose(0, 1).flatten(1))
        hidden = block.mlp.c_fc(self._norm(middle, block.ln_2, self.stds[index][1]))
        result: Tensor = middle + block.mlp.c_proj(hidden * self.gates[index])
        return result

    def run(self, first: int, stream: Tensor) -> Tensor:
        """All blocks from one on, then the embedding over the image's own norm."""
        for index in range(first, len(self.patterns)):
            stream = self.block(index, stream)
        return self.read(stream)

    def read(self, stream: Tensor) -> Tensor:
        result: Tensor = (self._norm(stream, self.visual.ln_post, self.std_post)[0] @ self.visual.proj) / self.norm
        return result
