"""Which path decodes faster, from a few rates of the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Below this share of active features, encoding by pairs is the faster way, on any device
SPARSE_ENCODING = 0.25


@dataclass(frozen=True)
class Rates:
    """What a kind of device does in a second; `python -m benchmarks.gpu` and `benchmarks.step` measure them.

    Attributes:
        products: multiply-adds x 2 of a matrix product, by type.
        gathers: bytes of decoder rows gathered, as the sparse path does.
        copies: bytes read and written.
    """

    products: dict[torch.dtype, float]
    gathers: float
    copies: float


#: cuda: an H100's, on paper: without TF32 its fp32 products do not run on tensor cores. cpu: one core with AVX-512
RATES: dict[str, Rates] = {
    "cuda": Rates({torch.float32: 5e13, torch.bfloat16: 6e14, torch.float16: 6e14, torch.float64: 3e13}, 5e12, 2.5e12),
    "cpu": Rates({torch.float32: 9e10, torch.bfloat16: 1.8e11, torch.float64: 4.5e10}, 3e10, 1e10),
}
#: What a product in TF32 gains over one in fp32
_TF32 = 5.0


def dense_type(device_type: str, low: torch.dtype | None) -> torch.dtype | None:
    """The type that a dense decoder's products take under autocast: low precision on GPUs, no other on a CPU."""
    return low if device_type == "cuda" else None


def sparse_below(device_type: str, dtype: torch.dtype, tokens: int, tf32: bool | None = None) -> float:
    """The share of active features below which the sparse decoder is the faster one, forward and backward.

    A dense one makes three products of `tokens x F x d` a decoder block, and casts the block (and its gradient) where
    it runs in a type other than fp32; a sparse one gathers rows twice for each active feature.

    Args:
        device_type: `cpu`, `cuda`; others are taken for a GPU.
        dtype: the type that the dense products run in.
        tokens: of a step.
        tf32: whether fp32 products on a GPU use TF32; None: as torch is set.
    """
    rates = RATES.get(device_type, RATES["cuda"])
    product = rates.products.get(dtype, rates.products[torch.float32])
    if device_type == "cuda" and dtype == torch.float32:
        allowed = torch.backends.cuda.matmul.allow_tf32 if tf32 is None else tf32
        product *= _TF32 if allowed else 1.0
    casts = 12 / rates.copies / max(tokens, 1) if dtype in (torch.bfloat16, torch.float16) else 0.0
    dense = 6 / product + casts  # of a token and weight
    sparse = 2 * 4 / rates.gathers  # of a token and weight of an active row
    return min(dense / sparse, 1.0)
