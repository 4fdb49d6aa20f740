"""What a transcoder's decoders could explain with the best codes: the ceiling of its amortised encoder.

An encoder finds codes in one product; a search finds better ones of the same decoders, at the same number a token. The
gap is the encoder's, the rest the dictionary's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import track
from clt_lightning.transcoder import CrossLayerTranscoder


@dataclass(frozen=True)
class Ceiling:
    """The encoder's codes against searched ones, on the same tokens.

    Attributes:
        encoder: FVU with the encoder's codes, mean over layers.
        searched: FVU with the searched codes.
        refitted: FVU with the encoder's choice of features, and the best non-negative codes of these.
        agreement: share of the encoder's active features that the search takes as well.
        codes: `(L, tokens, F)` the searched codes.
    """

    encoder: float
    searched: float
    refitted: float
    agreement: float
    codes: Tensor


@torch.no_grad()
def encoder_ceiling(clt: CrossLayerTranscoder, x: Tensor, y: Tensor, progress: bool = False) -> Ceiling:
    """Searches non-negative codes of the fixed decoders, token by token (orthogonal matching pursuit with NNLS).

    All layers' features are candidates at once, each with what it writes to all layers; each layer's error counts
    relative to its variance, as in the loss. A token gets as many codes as the encoder gives it, over all layers.

    Args:
        clt: the transcoder; for codes of 0 or more.
        x: `(L, tokens, d_model)` what it reads.
        y: `(L, tokens, d_out)` what it rebuilds.
        progress: say how far it is.

    Raises:
        UserError: codes may be negative, tokens are standardised, or x and y do not fit.
    """
    if clt.activation.signed or clt.normalization == "token":
        raise UserError("encoder_ceiling is for codes of 0 or more, and for normalize='layer'")
    if x.shape[:2] != y.shape[:2]:
        raise UserError(f"x {tuple(x.shape)} and y {tuple(y.shape)} must be of the same layers and tokens")
    codes = clt.encode(x).dense()
    weight = (clt.y_scale / clt.y_var.sqrt()).double().cpu()  # of a layer's scaled units in the loss
    atoms = _atoms(clt, weight)
    scale = atoms.norm(dim=1)
    alive = scale > 0
    units = torch.where(alive[:, None], atoms / scale.clamp_min(1e-300)[:, None], 0.0)
    rest = (y - clt.linear_part(x)).double().cpu() / clt.y_scale.double().cpu()[:, None, None]
    wanted = (rest * weight[:, None, None]).transpose(0, 1).flatten(1)
    flat = codes.transpose(0, 1).flatten(1).double().cpu()
    searched, refitted = torch.zeros_like(flat), torch.zeros_like(flat)
    shared = 0
    for token in track(range(len(flat)), "encoder's ceiling", unit="tokens", show=progress):
        own = flat[token].nonzero().flatten().numpy()
        target = wanted[token].numpy()
        chosen, values = _pursue(atoms.numpy(), units.numpy(), target, len(own))
        searched[token, chosen] = torch.from_numpy(values)
        if len(own):
            refitted[token, own] = torch.from_numpy(nnls(atoms.numpy()[own].T, target)[0])
        shared += len(np.intersect1d(own, chosen))
    spread = (y.double() - y.double().mean(1, keepdim=True)).square().sum((1, 2)).cpu()

    def fvu(found: Tensor) -> float:
        like = found.view(len(found), clt.n_layers, -1).transpose(0, 1).to(codes)
        error = (clt.decode(like, x) - y).double().square().sum((1, 2)).cpu()
        return float((error / spread).mean())

    best = searched.view(len(flat), clt.n_layers, -1).transpose(0, 1).to(codes)
    active = int((flat > 0).sum())
    return Ceiling(fvu(flat), fvu(searched), fvu(refitted), shared / max(1, active), best)


def _atoms(clt: CrossLayerTranscoder, weight: Tensor) -> Tensor:
    """`(L * F, L * d_out)` float64: what code 1 of each feature writes to all layers, weighted."""
    out = torch.zeros(clt.n_layers, clt.n_features, clt.n_layers, clt.d_out, dtype=torch.float64)
    for source, W in enumerate(clt.W_dec):
        n = clt.n_targets(source)
        out[source, :, source : source + n] = W.double().cpu() * weight[source : source + n, None]
    return out.flatten(2).flatten(0, 1)


def _pursue(atoms: np.ndarray, units: np.ndarray, target: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to `count` atoms, the one that fits the rest best at a time, and their non-negative weights."""
    chosen: list[int] = []
    values = np.zeros(0)
    rest = target
    for _ in range(count):
        fit = units @ rest
        fit[chosen] = -np.inf
        best = int(fit.argmax())
        if not fit[best] > 1e-12:
            break
        chosen.append(best)
        values, _ = nnls(atoms[chosen].T, target)
        rest = target - values @ atoms[chosen]
    return np.asarray(chosen, np.int64), values
