"""TorchScript archives in the layout in which OpenAI published CLIP."""

from __future__ import annotations

import warnings
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

VISION = {"image_size": 32, "patch_size": 8, "width": 128, "layers": 3}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}


class Node(nn.Module):
    """A module of nothing but what it holds; its code computes OpenAI's GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ExactNode(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x)


def openai_state(seed: int = 0, half: bool = True) -> dict[str, Tensor]:
    """The state of a tiny CLIP with random weights; in fp16 where OpenAI's archives are."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(48, VISION, TEXT, quick_gelu=True)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    if half:
        open_clip.convert_weights_to_fp16(model)
    return dict(model.state_dict())


def write_archive(path: Path, state: dict[str, Tensor], node: type[nn.Module] = Node, marks: bool = True) -> Path:
    """`torch.jit.save` of modules that hold the state under its names."""
    top = node()
    for name, tensor in state.items():
        *parents, last = name.split(".")
        module = top
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, node())
            module = getattr(module, parent)
        module.register_parameter(last, nn.Parameter(tensor.clone()))
    if marks:
        for name, number in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
            top.register_buffer(name, torch.tensor(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(top).save(str(path))
    return path
