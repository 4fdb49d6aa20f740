"""A transcoder as plain tensors, one set a layer: what the files of all tools are made of."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clt_lightning.core import kinds
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import sha256
from clt_lightning.core.sites import Sites
from clt_lightning.transcoder.activations import Activation, BatchTopK, JumpReLU

if TYPE_CHECKING:
    from clt_lightning.transcoder.clt import CrossLayerTranscoder
    from clt_lightning.transcoder.decoders import Topology

SUMS = "SHA256SUMS"


@dataclass
class Layer:
    """One layer in the backbone's units.

    Attributes:
        W_enc: `(F, d)`.
        b_enc: `(F,)`.
        W_dec: `(F, targets, d_out)`.
        b_dec: `(d_out,)`.
        threshold: `(F,)` what a pre-activation must exceed; None for 0, or where the k largest are taken.
        W_skip: `(d_out, d)`, applied as `x @ W_skip.T`; None without a skip.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None
    W_skip: Tensor | None = None


def layers_of(clt: CrossLayerTranscoder, dtype: torch.dtype | None) -> Iterator[Layer]:
    """The layers, scales folded in, of evaluation (BatchTopK is a threshold there), in a type (None: their own)."""
    dtype = clt.b_dec.dtype if dtype is None else dtype
    folded = copy.deepcopy(clt).fold_().requires_grad_(False)
    for i in range(clt.n_layers):
        threshold = None
        if isinstance(folded.activation, JumpReLU | BatchTopK):
            threshold = folded.activation.threshold[i].clamp(min=0).expand(clt.n_features)
        tensors = (folded.W_enc[i], folded.b_enc[i], folded.W_dec[i], folded.b_dec[i], threshold)
        skip = None if folded.W_skip is None else folded.W_skip[i]
        yield Layer(*(None if t is None else t.detach().cpu().to(dtype).contiguous() for t in (*tensors, skip)))  # type: ignore[arg-type]


def build(
    layers: Sequence[Layer], topology: Topology, activation: Activation, sites: Sites | None = None
) -> CrossLayerTranscoder:
    """A transcoder from plain layers; thresholds make it a JumpReLU.

    Raises:
        UserError: layers of different sizes, or sites that do not go with the topology.
    """
    from clt_lightning.transcoder.clt import CrossLayerTranscoder

    first = layers[0]
    n_features, d_model = first.W_enc.shape
    d_out = first.W_dec.shape[2]
    skip = any(layer.W_skip is not None for layer in layers)
    thresholds = [layer.threshold for layer in layers]
    if any(t is not None for t in thresholds):
        activation = JumpReLU()
    with torch.device("meta"):
        clt = CrossLayerTranscoder(
            len(layers), d_model, n_features, activation, topology, skip, sites=sites, d_out=d_out
        )
    clt = clt.to_empty(device="cpu")
    with torch.no_grad():
        for buffer, value in ((clt.x_scale, 1), (clt.y_scale, 1), (clt.y_var, 1), (clt.y_mean, 0), (clt.normalized, 0)):
            buffer.fill_(value)
        for i, layer in enumerate(layers):
            pairs: list[tuple[str, Tensor, Tensor | None]] = [
                ("W_enc", clt.W_enc[i], layer.W_enc),
                ("b_enc", clt.b_enc[i], layer.b_enc),
                ("W_dec", clt.W_dec[i], layer.W_dec),
                ("b_dec", clt.b_dec[i], layer.b_dec),
            ]
            if clt.W_skip is not None:
                zeros = torch.zeros(d_out, d_model)
                pairs.append(("W_skip", clt.W_skip[i], zeros if layer.W_skip is None else layer.W_skip))
            if isinstance(clt.activation, JumpReLU):
                threshold = torch.zeros(n_features) if layer.threshold is None else layer.threshold.float()
                # 0 has no logarithm; nothing lies between 0 and the smallest number
                least = torch.finfo(torch.float32).tiny
                pairs.append(("threshold", clt.activation.log_threshold[i], threshold.clamp(min=least).log()))
            for name, into, found in pairs:
                if found is None or into.shape != found.shape:
                    got = "nothing" if found is None else tuple(found.shape)
                    raise UserError(f"layer {i}: {name} must be {tuple(into.shape)} as in layer 0, got {got}")
                into.copy_(found)
    return clt.eval()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, floating ones in fp32.

    Raises:
        UserError: damaged, or another kind of file.
    """
    kind = kinds.kind_of(path)
    if kind.name != kinds.SAFETENSORS:
        raise UserError(f"{path} {kind}")
    try:
        found = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"cannot read {path}: {kinds.first_line(error)}") from error
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def take(tensors: dict[str, Tensor], names: Sequence[str], path: Path) -> list[Tensor]:
    """Tensors by name.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in names if name not in tensors]
    if missing:
        raise UserError(f"{path} has no tensor {', '.join(missing)} (it has {', '.join(sorted(tensors)) or 'none'})")
    return [tensors[name] for name in names]


def numbered(folder: Path, pattern: str) -> list[Path]:
    """Files or folders of a folder by the number in their names, from 0 on without a gap; empty where there are none.

    Args:
        folder: where.
        pattern: regular expression of the whole name, with the number as its group.

    Raises:
        UserError: a number is missing.
    """
    found = {int(m[1]): path for path in folder.iterdir() if (m := re.fullmatch(pattern, path.name))}
    gaps = sorted(set(range(max(found, default=-1) + 1)) - set(found))
    if gaps:
        raise UserError(f"{folder}: layer {gaps[0]} is missing (there are {', '.join(map(str, sorted(found)))})")
    return [found[number] for number in sorted(found)]


#: TransformerLens's names of sites, which other tools use, without `blocks.<l>.`
HOOKS = {
    "resid_pre": "hook_resid_pre",
    "attn_z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_in": "mlp.hook_in",
    "mlp_out": "mlp.hook_out",
    "resid_post": "hook_resid_post",
}
_ALSO = {"hook_mlp_out": "mlp_out", "ln2.hook_normalized": "mlp_in", "ln_2.output": "mlp_in", "ls_2.output": "mlp_out"}


def cls_note(clt: CrossLayerTranscoder) -> str:
    """What files with one threshold per layer leave out of a transcoder that weights [CLS]."""
    return (
        f"at [CLS] the threshold is 1/{clt.cls_weight:g} of the others' here (cls_weight), which the files cannot say: "
        "at [CLS] they give fewer codes"
    )


def blocks_of(clt: CrossLayerTranscoder) -> list[int]:
    """The numbers of the blocks that a transcoder's layers stand at."""
    return list(range(clt.n_layers)) if clt.sites.layers is None else list(clt.sites.layers)


def sites_of(hooks: Sequence[tuple[str, str]]) -> Sites | None:
    """The sites that hook names mean: `(read, written)` of each layer; None where one is not known here.

    Raises:
        UserError: layers at different sites, or out of order.
    """
    found = []
    for pair in hooks:
        parts = [re.fullmatch(r"blocks\.(\d+)\.(.+)", hook or "") for hook in pair]
        names = {**{name: site for site, name in HOOKS.items()}, **_ALSO}
        known = [None if m is None else names.get(m[2]) for m in parts]
        if None in known or parts[0] is None or parts[1] is None or parts[0][1] != parts[1][1]:
            return None
        found.append((int(parts[0][1]), known[0], known[1]))
    kinds = {(read, write) for _, read, write in found}
    if len(kinds) > 1:
        raise UserError(f"the layers are of different sites: {', '.join(sorted(f'{r} -> {w}' for r, w in kinds))}")
    return Sites(read=found[0][1], write=found[0][2], layers=[block for block, _, _ in found])  # type: ignore[arg-type]


def write_sums(folder: Path) -> None:
    """`SHA256SUMS` of all files below a folder, for `sha256sum -c SHA256SUMS`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")
