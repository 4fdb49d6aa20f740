"""What a transcoder's decoders could explain with the best codes: the ceiling of its amortised encoder.

An encoder finds codes in one product; a search finds better ones of the same decoders, at the same number per token.
The gap is the encoder's, the rest the dictionary's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.core.memory import available
from clt_lightning.core.progress import track
from clt_lightning.core.say import say
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

    It holds what every feature writes to all layers, `(L F, L d_out)` in float32, and the codes of all tokens three
    times, `(tokens, L F)` in float64: `ceiling_bytes` says how much that is.

    Args:
        clt: the transcoder; for codes of 0 or more.
        x: `(L, tokens, d_model)` what it reads.
        y: `(L, tokens, d_out)` what it rebuilds.
        progress: say how much memory it takes, and how far it is.

    Raises:
        UserError: codes may be negative, tokens are standardised, x and y do not fit, or there is too little memory.
    """
    if clt.activation.signed or clt.normalization == "token":
        raise UserError("encoder_ceiling is for codes of 0 or more, and for normalize='layer'")
    if x.shape[:2] != y.shape[:2]:
        raise UserError(f"x {tuple(x.shape)} and y {tuple(y.shape)} must be of the same layers and tokens")
    needed, free = ceiling_bytes(clt, x.shape[1]), available()
    if progress:
        say(f"encoder's ceiling: the decoders of all features and the codes take {needed / 1e9:.2f} GB of main memory")
    if free is not None and needed > free:
        raise UserError(
            f"encoder_ceiling needs {needed / 1e9:.1f} GB of main memory for {clt.n_layers} x {clt.n_features} "
            f"features and {x.shape[1]:,} tokens, and {free / 1e9:.1f} GB are free: take fewer tokens"
            + ("" if ceiling_bytes(clt, 0) < free else ", or a smaller transcoder: the decoders alone are too large")
        )
    codes = clt.encode(x).dense()
    weight = (clt.y_scale / clt.y_var.sqrt()).double().cpu()  # of a layer's scaled units in the loss
    atoms = _atoms(clt, weight)
    inverse = atoms.norm(dim=1).reciprocal().nan_to_num(posinf=0.0).numpy()
    rest = (y - clt.linear_part(x)).double().cpu() / clt.y_scale.double().cpu()[:, None, None]
    wanted = (rest * weight[:, None, None]).transpose(0, 1).flatten(1)
    flat = codes.transpose(0, 1).flatten(1).double().cpu()
    searched, refitted = torch.zeros_like(flat), torch.zeros_like(flat)
    shared = 0
    for token in track(range(len(flat)), "encoder's ceiling", unit="tokens", show=progress):
        own = flat[token].nonzero().flatten().numpy()
        target = wanted[token].numpy()
        chosen, values = _pursue(atoms.numpy(), inverse, target, len(own))
        searched[token, chosen] = torch.from_numpy(values)
        if len(own):
            refitted[token, own] = torch.from_numpy(_fitted(atoms.numpy(), own, target)[0])
        shared += len(np.intersect1d(own, chosen))
    spread = (y.double() - y.double().mean(1, keepdim=True)).square().sum((1, 2)).cpu()

    def fvu(found: Tensor) -> float:
        like = found.view(len(found), clt.n_layers, -1).transpose(0, 1).to(codes)
        error = (clt.decode(like, x) - y).double().square().sum((1, 2)).cpu()
        return float((error / spread).mean())

    best = searched.view(len(flat), clt.n_layers, -1).transpose(0, 1).to(codes)
    active = int((flat > 0).sum())
    return Ceiling(fvu(flat), fvu(searched), fvu(refitted), shared / max(1, active), best)


def ceiling_bytes(clt: CrossLayerTranscoder, tokens: int) -> int:
    """Main memory that `encoder_ceiling` takes for so many tokens, in bytes."""
    features = clt.n_layers * clt.n_features
    return features * (4 * clt.n_layers * clt.d_out + 3 * 8 * tokens)


def _atoms(clt: CrossLayerTranscoder, weight: Tensor) -> Tensor:
    """`(L * F, L * d_out)` float32: what code 1 of each feature writes to all layers, weighted."""
    out = torch.zeros(clt.n_layers, clt.n_features, clt.n_layers, clt.d_out)
    for source, W in enumerate(clt.W_dec):
        n = clt.n_targets(source)
        for target, block in zip(range(source, source + n), W.unbind(1)):
            out[source, :, target] = block.float().cpu() * weight[target].float()
    return out.flatten(2).flatten(0, 1)


def _pursue(atoms: np.ndarray, inverse: np.ndarray, target: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to `count` atoms, the one that fits the rest best at a time, and their non-negative weights.

    Args:
        atoms: `(atoms, size)` float32.
        inverse: `(atoms,)` one over their norms; 0 for one of norm 0.
        target: `(size,)` float64.
        count: how many at most.
    """
    chosen: list[int] = []
    values = np.zeros(0)
    rest = target
    for _ in range(count):
        fit = (atoms @ rest.astype(np.float32)) * inverse
        fit[chosen] = -np.inf
        best = int(fit.argmax())
        if not fit[best] > 1e-6 * np.linalg.norm(target):
            break
        chosen.append(best)
        values, rest = _fitted(atoms, np.asarray(chosen), target)
    return np.asarray(chosen, np.int64), values


def _fitted(atoms: np.ndarray, chosen: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best non-negative weights of some atoms, and what is left of the target."""
    rows = atoms[chosen].astype(np.float64)
    values, _ = nnls(rows.T, target)
    return values, target - values @ rows
