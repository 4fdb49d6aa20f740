"""Features cut into chunks of pairs: equal pieces of work for a GPU, whatever the features' popularity.

A feature that fires on half of the tokens has a hundred times the pairs of the median one; one program for all of them
would be still running when everything else is done. The chunks are computed on the device, from offsets, with bounds
that are known beforehand: no size has to travel to the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Pairs in a chunk: about 30 rounds of loads for one program, a small part of a launch's time at 4096 tokens
CHUNK_PAIRS = 256


@dataclass(frozen=True)
class FeatureChunks:
    """Chunks of at most `size` pairs of one feature each, in feature order; a feature without pairs has an empty one.

    A feature with a single chunk is finished by it. The chunks of a *long* feature leave their sums in slots, which are
    added up in order afterwards: no atomics, the same bits in every run.

    Attributes:
        feature: `(bound,)` int32, the feature of each chunk; F past the last one. `bound = F + pairs // size`.
        first: `(F + 1,)` int32, the first chunk of each feature.
        slot: `(F + 1,)` int32, the first slot of each feature; as many slots as chunks if long, none otherwise.
        slot_feature: `(slots,)` int32, the feature of each slot; F past the last one. `slots = 2 * (pairs // size)`.
        size: pairs in a chunk.
    """

    feature: Tensor
    first: Tensor
    slot: Tensor
    slot_feature: Tensor
    size: int

    @classmethod
    def of(cls, offsets: Tensor, n_pairs: int, size: int = CHUNK_PAIRS) -> FeatureChunks:
        """Cuts features at their offsets.

        Args:
            offsets: `(F + 1,)` start of each feature in feature-major order, on the device.
            n_pairs: their number, `offsets[-1]`.
            size: pairs in a chunk.
        """
        n_features = offsets.numel() - 1
        # ceil(c / size) <= 1 + c // size for every feature, and < 2 c / size for the long ones: hence the bounds
        chunks = ((offsets.diff() + (size - 1)) // size).clamp_min(1)
        first = _exclusive_sums(chunks)
        slot = _exclusive_sums(torch.where(chunks > 1, chunks, torch.zeros_like(chunks)))
        bound, slots = n_features + n_pairs // size, 2 * (n_pairs // size)
        positions = torch.arange(max(bound, slots), device=offsets.device, dtype=torch.int32)
        return cls(
            torch.searchsorted(first[1:], positions[:bound], right=True, out_int32=True),
            first,
            slot,
            torch.searchsorted(slot[1:], positions[:slots], right=True, out_int32=True),
            size,
        )


def _exclusive_sums(counts: Tensor) -> Tensor:
    sums = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=counts.device)
    torch.cumsum(counts, 0, dtype=torch.int32, out=sums[1:])
    return sums
