"""A transcoder whose features are divided over the processes of a group."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clt_lightning.core.sites import Sites
from clt_lightning.parallel import state
from clt_lightning.parallel.exchange import FeatureExchange
from clt_lightning.parallel.selection import select_topk
from clt_lightning.parallel.shards import Shards
from clt_lightning.transcoder.activations import Activation, from_config
from clt_lightning.transcoder.clt import CrossLayerTranscoder
from clt_lightning.transcoder.codes import Codes
from clt_lightning.transcoder.decoders import Topology
from clt_lightning.transcoder.encoders import Backend
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.requests import AuxiliaryRequest
from clt_lightning.transcoder.scaled import Normalize
from clt_lightning.transcoder.screening import Chosen, Screen


class ShardedTranscoder(CrossLayerTranscoder):
    """Keeps F / R features of every layer, and gives with R - 1 others the numbers of one `CrossLayerTranscoder`.

    All processes of the group must call it with the same tokens, in the same order. The training forward gives the
    whole `y_hat`, and codes and pre-activations of its own features; `encode` and `gather_codes` give those of all.
    `encode_layer` and `layer_terms` belong together: the codes between them are this process's, the terms are whole.

    Args:
        shards: this process's place.
        n_layers, d_model, n_features, activation, topology, skip, backend, sites, d_out, normalize,
            n_positions: as of `CrossLayerTranscoder`; `n_features` is F, the whole dictionary.
        seed: the weights are the same as those of one process with this seed.

    Raises:
        UserError: F is no multiple of R.
    """

    exchange: FeatureExchange

    def __init__(
        self,
        shards: Shards,
        n_layers: int,
        d_model: int,
        n_features: int,
        activation: Activation | None = None,
        topology: Topology = "cross_layer",
        skip: bool = False,
        backend: Backend = "auto",
        seed: int = 0,
        sites: Sites | dict[str, Any] | None = None,
        d_out: int | None = None,
        normalize: Normalize = "layer",
        n_positions: int | None = None,
    ) -> None:
        self.shards = shards
        self.width = shards.width(n_features)
        self.own = slice(shards.rank * self.width, (shards.rank + 1) * self.width)
        super().__init__(
            *(n_layers, d_model, self.width, activation, topology, skip, backend, seed),
            *(sites, d_out, normalize, n_positions),
        )
        self.n_features = int(n_features)
        self.exchange = FeatureExchange(shards, self.activation, activation, n_layers, n_features)
        # every process draws the whole stream, a layer at a time, and keeps its rows
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for W in self.W_enc:
                W.copy_((torch.randn(n_features, d_model, generator=generator) / d_model**0.5)[self.own])

    # -- which tensor is divided along which dimension -----------------------------------------------------------------
    def feature_dim(self, name: str) -> int | None:
        """The dimension along which a tensor of `state_dict` is divided; None for one that all processes hold."""
        if name.startswith(("W_enc.", "W_dec.")):
            return 0
        if name == "b_enc":
            return 1
        return self.exchange.dims.get(name.removeprefix("activation.")) if name.startswith("activation.") else None

    def divided(self) -> list[tuple[nn.Parameter, int | None]]:
        """Every parameter with the dimension along which it is divided."""
        return [(parameter, self.feature_dim(name)) for name, parameter in self.named_parameters()]

    # -- forward -------------------------------------------------------------------------------------------------------
    def _encoder_input(self, x: Tensor) -> Tensor:
        return self.shards.spread(x)

    def _select(self, pre: Tensor, layer: int) -> Pairs | Tensor:
        return self.activation.select_part(pre, layer, self.exchange)

    def _decode_features(self, codes: Codes, low: torch.dtype | None) -> Tensor:
        return self.shards.sum(super()._decode_features(codes, low))

    def _choose(self, screen: Screen, layer: int) -> Chosen | None:
        return self.activation.choose_part(screen, layer, self.exchange)

    def _select_dead(
        self, entries: Callable[[Tensor], Tensor], layer: int, request: AuxiliaryRequest
    ) -> tuple[Pairs, Tensor]:
        features = request.dead[layer, self.own].nonzero().flatten()
        columns = int(request.dead[layer].view(self.shards.size, self.width).sum(1).max())
        # of one width on all processes; what is filled in can never be chosen
        found = F.pad(entries(features), (0, columns - features.numel()), value=float("-inf"))
        local = select_topk(found, request.k, self.shards)
        return Pairs(features[local.features], local.offsets, self.width), found[local.tokens, local.features]

    def encode(self, x: Tensor, cls: Tensor | None = None) -> Codes:
        """Codes of all features, without gradients."""
        return self.gather_codes(super().encode(x, cls))

    def layer_terms(self, codes: Mapping[int, Codes] | Sequence[Codes], target: int) -> Tensor:
        """As of one process; takes codes of all features as well as those of `encode_layer`, which are its own."""
        return self.shards.sum(super().layer_terms(self._own_of(codes, target), target))

    def layer_sum(
        self, codes: Mapping[int, Codes] | Sequence[Codes], target: int, sources: Collection[int] | None = None
    ) -> Tensor:
        return self.shards.sum(super().layer_sum(self._own_of(codes, target), target, sources))

    def _own_of(self, codes: Mapping[int, Codes] | Sequence[Codes], target: int) -> dict[int, Codes]:
        return {i: self._own_part(codes[i]) for i in range(target + 1) if self.writes(i, target)}

    def _as_codes(self, codes: Codes | Tensor) -> Codes:
        return self._own_part(super()._as_codes(codes))

    def _own_part(self, codes: Codes) -> Codes:
        """This process's part of codes of all features; codes that are its own already stay as they are."""
        if codes.n_features == self.width:
            return codes
        pairs, values = [], []
        for layer in range(codes.n_layers):
            p, v = codes.layer(layer)
            mine = (p.features >= self.own.start) & (p.features < self.own.stop)
            counts = torch.bincount(p.tokens[mine], minlength=p.n_tokens)
            offsets = F.pad(counts.cumsum(0), (1, 0))
            pairs.append(Pairs(p.features[mine] - self.own.start, offsets, self.width))
            values.append(v[mine])
        return Codes(pairs, values)

    # -- what the group knows together ---------------------------------------------------------------------------------
    def sum_over_shards(self, part: Tensor) -> Tensor:
        return self.shards.sum(part)

    def fired(self, codes: Codes) -> Tensor:
        """`(layers, n_features)` bool: of this process's features those that fired, false for the others."""
        fired = torch.zeros(self.n_layers, self.n_features, dtype=torch.bool, device=codes.device)
        fired[:, self.own] = codes.fired()
        return fired

    def raise_biases(self, features: Tensor, amount: float) -> None:
        super().raise_biases(features[:, self.own], amount)

    @torch.no_grad()
    def gather_codes(self, codes: Codes) -> Codes:
        """The codes of all features on every process, without gradients; moves 20 bytes per code."""
        layers = [codes.layer(layer) for layer in range(codes.n_layers)]
        n = codes.n_tokens
        places = torch.cat([layer * n + p.tokens for layer, (p, _) in enumerate(layers)])
        features = torch.cat([p.features for p, _ in layers]) + self.own.start
        values = torch.cat([v for _, v in layers])
        sizes = self.shards.all_gather(places.new_tensor([places.numel()])).flatten().tolist()
        room = max(sizes) - places.numel()
        numbers = self.shards.all_gather(F.pad(torch.stack([places, features]), (0, room)))
        found = self.shards.all_gather(F.pad(values, (0, room)))
        places = torch.cat([numbers[r, 0, :size] for r, size in enumerate(sizes)])
        order = torch.argsort(places, stable=True)
        features = torch.cat([numbers[r, 1, :size] for r, size in enumerate(sizes)])[order]
        values = torch.cat([found[r, :size] for r, size in enumerate(sizes)])[order]
        ends = F.pad(torch.bincount(places, minlength=codes.n_layers * n).cumsum(0), (1, 0))
        pairs, parts = [], []
        for layer in range(codes.n_layers):
            offsets = ends[layer * n : (layer + 1) * n + 1]
            inside = slice(int(offsets[0]), int(offsets[-1]))
            pairs.append(Pairs(features[inside], offsets - offsets[0], self.n_features))
            parts.append(values[inside])
        return Codes(pairs, parts)

    @torch.no_grad()
    def average_replicas(self) -> None:
        """Averages the gradients of what all processes hold, which differ in their last bits at most.

        With it copies of `b_dec` and the skip path stay equal whatever order a backend adds in. What an activation has
        in common for all features gets its gradient from each process's own ones: these are added up.
        """
        for name, parameter in self.named_parameters():
            if self.feature_dim(name) is None and parameter.grad is not None:
                total = self.shards.reduce_(parameter.grad)
                if not name.startswith("activation."):
                    total.div_(self.shards.size)

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """The norm of the gradient over all features, a scalar, equal on all processes; all of them must call this."""
        mine, shared = self.b_dec.new_zeros(()), self.b_dec.new_zeros(())
        for parameter, dim in self.divided():
            if parameter.grad is None:
                continue
            square = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32).square()
            if dim is None:
                shared += square
            else:
                mine += square
        return (self.shards.reduce_(mine) + shared).sqrt()

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Shortens the gradient to `max_norm`, by its norm over all features; `torch.nn.utils.clip_grad_norm_` on one.

        Returns:
            the norm before.
        """
        norm = self.gradient_norm()
        grads = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    # -- files ---------------------------------------------------------------------------------------------------------
    def whole(self) -> CrossLayerTranscoder | None:
        """The transcoder with all features, in the main memory of the first process of group 0; None elsewhere.

        All processes must call it.
        """
        tensors = state.gather_module(self, self.state_dict(), "")
        if tensors is None:
            return None
        arguments = self.config()
        arguments["activation"] = from_config(arguments["activation"])
        with torch.device("meta"):
            clt = CrossLayerTranscoder(**arguments, backend=self.backend)
        clt.load_state_dict(tensors, assign=True)
        return clt.train(self.training)

    def save_pretrained(self, folder: str | Path, metadata: dict[str, Any] | None = None) -> Path:
        """Writes the whole transcoder (`CrossLayerTranscoder.save_pretrained`); all processes must call it."""
        clt = self.whole()
        return Path(folder) if clt is None else clt.save_pretrained(folder, metadata)
