"""Decoders in files: of features that do not write to all layers, the groups that are there and where they belong.

`W_dec.i` of shape `(F, targets, d_out)` is written as `W_dec.i.written`, `(F, targets)` bool, and `W_dec.i.groups`,
`(groups, d_out)`, in the order of `written`; where that would not be smaller, as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError

_WRITTEN, _GROUPS = ".written", ".groups"


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transcoder's tensors as a file holds them."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith("W_dec.") or tensor.dim() != 3:
            out[name] = tensor
            continue
        written = torch.stack([block.any(1) for block in tensor.unbind(1)], 1)
        saved = (written.numel() - int(written.sum())) * tensor.shape[2] * tensor.element_size()
        if saved > written.numel():
            out |= {name + _WRITTEN: written, name + _GROUPS: tensor[written]}
        else:
            out[name] = tensor
    return out


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack`; the groups that are not there are 0.

    Raises:
        UserError: one of the two parts is missing, or they do not fit each other.
    """
    out = {name: tensor for name, tensor in tensors.items() if not name.endswith((_WRITTEN, _GROUPS))}
    for name in {name.removesuffix(_WRITTEN).removesuffix(_GROUPS) for name in tensors.keys() - out.keys()}:
        written, groups = tensors.get(name + _WRITTEN), tensors.get(name + _GROUPS)
        if written is None or groups is None:
            raise UserError(f"{name}: the file holds one of {name + _WRITTEN} and {name + _GROUPS}, not the other")
        if name in out:
            raise UserError(f"{name}: the file holds it twice, as it is and as {name + _GROUPS}")
        if (
            (written.dtype, written.dim(), groups.dim()) != (torch.bool, 2, 2)
            or not groups.is_floating_point()
            or int(written.sum()) != len(groups)
        ):
            raise UserError(
                f"{name}: {name + _WRITTEN} {_form(written)} names {int((written != 0).sum())} groups, but "
                f"{name + _GROUPS} is {_form(groups)}"
            )
        whole = groups.new_zeros(*written.shape, groups.shape[1])
        whole[written] = groups
        out[name] = whole
    return out


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
