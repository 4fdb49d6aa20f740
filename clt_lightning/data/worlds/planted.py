"""Tensors whose features are known: what a transcoder trained on them should find, and where each one writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clt_lightning.core.errors import UserError


@dataclass(frozen=True)
class PlantedBatch:
    """Tokens of a planted world.

    Attributes:
        x: what the layers read, `(layers, tokens, d_model)`.
        y: what they write, `(layers, tokens, d_model)`.
        codes: the true codes, `(layers, tokens, n_features)`, 0 or more.
    """

    x: Tensor
    y: Tensor
    codes: Tensor


class Planted:
    """Sparse features that are read at one layer and written to some of the later ones, as in a cross-layer transcoder.

    A feature of layer i is on at a token with its own rate, in an amount drawn evenly from `amplitude`. It is read
    along its direction of `W_enc[i]`, which later layers see too, smaller by `carry` per layer; and it writes its
    directions of `W_dec[i]` to the layers of its support:

        x[l] = sum over i <= l of carry^(l - i) * codes[i] @ W_enc[i]      + noise
        y[j] = sum over i <= j of                 codes[i] @ W_dec[i][:, j - i] + noise

    All directions are random unit vectors; those outside the support are exactly 0. Everything is a function of `seed`.

    Args:
        n_layers: Layers L.
        d_model: Size of a token at each layer.
        n_features: True features F of each layer.
        rate: Share of the tokens at which a feature is on; of two numbers, each feature's is drawn between them,
            log-uniformly.
        support: Probability that a feature writes to a layer, its own or a later one; each writes to one at least.
        anchors: Share of each layer's features that write to exactly one layer, whatever `support` says.
        carry: What is left of a direction one layer further on, 0 (a layer sees its own features alone) to 1.
        amplitude: Least and largest code of a feature that is on.
        noise: Standard deviation of the noise on each coordinate of x and y.
        seed: Seed of the directions, the supports and the rates.

    Attributes:
        W_enc: `(L, F, d_model)`.
        W_dec: for each layer i `(F, L - i, d_model)`.
        support: for each layer i `(F, L - i)`, bool: whether a feature writes to the layer.
        anchors: `(L, F)`, bool: whether a feature writes to one layer only.
        rates: `(L, F)`.
    """

    def __init__(
        self,
        n_layers: int = 4,
        d_model: int = 24,
        n_features: int = 32,
        *,
        rate: float | tuple[float, float] = 0.05,
        support: float = 0.45,
        anchors: float = 0.0,
        carry: float = 1.0,
        amplitude: tuple[float, float] = (0.5, 1.5),
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        low, high = (rate, rate) if isinstance(rate, int | float) else rate
        for name, value, sound, wanted in (
            ("n_layers", n_layers, n_layers >= 1, "1 or more"),
            ("d_model", d_model, d_model >= 1, "1 or more"),
            ("n_features", n_features, n_features >= 1, "1 or more"),
            ("rate", rate, 0 < low <= high <= 1, "above 0 and at most 1, the smaller of two first"),
            ("support", support, 0 <= support <= 1, "from 0 to 1"),
            ("anchors", anchors, 0 <= anchors <= 1, "from 0 to 1"),
            ("carry", carry, 0 <= carry <= 1, "from 0 to 1"),
            ("amplitude", amplitude, 0 < amplitude[0] <= amplitude[1], "above 0, the smaller first"),
            ("noise", noise, noise >= 0, "0 or more"),
        ):
            if not sound:
                raise UserError(f"Planted: {name} must be {wanted}, but is {value}")
        self.n_layers, self.d_model, self.n_features = n_layers, d_model, n_features
        self.carry, self.amplitude, self.noise, self.seed = carry, amplitude, noise, seed
        generator = _generator(seed)
        self.W_enc = _directions(generator, n_layers, n_features, d_model)
        drawn = torch.rand(n_layers, n_features, generator=generator, dtype=torch.float64)
        self.rates = (low * (high / low) ** drawn).to(torch.float32)
        self.support = [_support(generator, n_features, n_layers - i, support, anchors) for i in range(n_layers)]
        self.W_dec = [
            _directions(generator, *there.shape, d_model) * there.unsqueeze(-1).to(torch.float32)
            for there in self.support
        ]
        self.anchors = torch.stack([there.sum(1) == 1 for there in self.support])

    def sample(self, tokens: int, seed: int = 0, rates: Tensor | None = None) -> PlantedBatch:
        """Draws tokens.

        Args:
            tokens: how many.
            seed: other tokens of the same world; the same seed gives the same ones.
            rates: `(L, F)`, for another population of tokens, in which features are on more or less often; None: the
                world's own.

        Raises:
            UserError: rates of another shape, or not from 0 to 1.
        """
        rates = self.rates if rates is None else rates
        if rates.shape != self.rates.shape or not bool(((rates >= 0) & (rates <= 1)).all()):
            raise UserError(f"Planted: rates must be {tuple(self.rates.shape)} numbers from 0 to 1")
        generator = _generator(self.seed, seed, 1)
        size = (self.n_layers, tokens, self.n_features)
        on = torch.rand(size, generator=generator) < rates[:, None]
        low, high = self.amplitude
        codes = on * (low + (high - low) * torch.rand(size, generator=generator))
        x, y = self.encoder_side(codes), self.decode(codes)
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
            y = y + self.noise * torch.randn(y.shape, generator=generator)
        return PlantedBatch(x, y, codes)

    def batches(self, tokens: int, steps: int, seed: int = 0, start: int = 0) -> Iterator[PlantedBatch]:
        """The batches `start .. steps - 1` of a training: batch i is the same whichever the start."""
        for step in range(start, steps):
            yield self.sample(tokens, seed=int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))

    def encoder_side(self, codes: Tensor) -> Tensor:
        """What layers read where the codes `(L, tokens, F)` are on, without noise: `(L, tokens, d_model)`."""
        read = torch.einsum("ltf,lfd->ltd", codes, self.W_enc.to(codes))
        for layer in range(1, self.n_layers):
            read[layer] += self.carry * read[layer - 1]
        return read

    def decode(self, codes: Tensor) -> Tensor:
        """What layers write where the codes `(L, tokens, F)` are on, without noise: `(L, tokens, d_model)`."""
        written = codes.new_zeros(self.n_layers, codes.shape[1], self.d_model)
        for i, directions in enumerate(self.W_dec):
            written[i:] += torch.einsum("tf,fjd->jtd", codes[i], directions.to(codes))
        return written


def _generator(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> 1))


def _directions(generator: torch.Generator, *shape: int) -> Tensor:
    """Unit vectors over the last axis."""
    return torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)


def _support(generator: torch.Generator, n_features: int, targets: int, share: float, anchors: float) -> Tensor:
    """`(n_features, targets)`, bool, at least one per row; in the anchors' rows exactly one."""
    there = torch.rand(n_features, targets, generator=generator) < share
    one = torch.randint(targets, (n_features, 1), generator=generator)
    single = torch.zeros_like(there).scatter_(1, one, True)
    anchored = torch.randperm(n_features, generator=generator) < round(anchors * n_features)
    return torch.where((anchored | ~there.any(1)).unsqueeze(1), single, there)
