"""What an activation's scope needs of the other processes' features."""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.parallel.selection import batch_winners, screen_batch, screen_topk, select_topk
from clt_lightning.parallel.shards import Shards
from clt_lightning.transcoder.activations import Activation, TopK
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.screening import Chosen, Screen

#: Pre-activations of so many entries are put together at a time, where a token decides alone
_ENTRIES = 1 << 24


def _tensors(activation: Activation) -> dict[str, Tensor]:
    """Parameters and buffers by name, also those that are not saved."""
    return {**dict(activation.named_parameters()), **dict(activation.named_buffers())}


class FeatureExchange:
    """The exchange of an activation whose features are divided: `transcoder.activations.exchange.Exchange`.

    Args:
        shards: this process's place.
        activation: the one that is built for this process's features; it gets its part of what `given` makes for all.
        given: the same, not yet built; None: the transcoder's default.
        n_layers: L.
        n_features: F, of all processes.

    Attributes:
        dims: of each tensor of the activation, the dimension along which it is divided; None: all hold it.

    Raises:
        UserError: a tensor of the activation that cannot be divided.
    """

    def __init__(
        self, shards: Shards, activation: Activation, given: Activation | None, n_layers: int, n_features: int
    ) -> None:
        self.shards, self.activation = shards, activation
        self.width = n_features // shards.size
        self.whole = copy.deepcopy(given) if given is not None else TopK(64)
        self.whole.build(n_layers, n_features)
        self.dims = {name: self._divided_along(name, tensor) for name, tensor in _tensors(self.whole).items()}
        with torch.no_grad():
            every = _tensors(self.whole)
            for name, tensor in _tensors(activation).items():
                tensor.copy_(self.part(name, every[name]))

    def _divided_along(self, name: str, tensor: Tensor) -> int | None:
        own = _tensors(self.activation)[name].shape
        odd = [dim for dim, (a, b) in enumerate(zip(own, tensor.shape)) if a != b]
        if not odd:
            return None
        if len(own) != tensor.dim() or len(odd) > 1 or own[odd[0]] * self.shards.size != tensor.shape[odd[0]]:
            raise UserError(
                f"activation {type(self.activation).__name__} cannot be divided over {self.shards.size} processes: its "
                f"tensor {name} is {tuple(tensor.shape)} for all features, and {tuple(own)} for a part of them"
            )
        return odd[0]

    def placed(self, name: str, tensor: Tensor) -> Tensor:
        """This process's part of a tensor of the activation at its place, zero elsewhere; a whole one as it is."""
        dim = self.dims[name]
        if dim is None:
            return tensor
        whole = tensor.new_zeros(_tensors(self.whole)[name].shape)
        self.part(name, whole).copy_(tensor)
        return whole

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """This process's part of a tensor of the activation of all features; one that is not divided as it is."""
        dim = self.dims[name]
        return tensor if dim is None else tensor.narrow(dim, self.shards.rank * self.width, self.width)

    # -- any activation ------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def select(self, pre: Tensor, layer: int, scope: Literal["token", "batch"]) -> Pairs | Tensor:
        """This process's part of what `select` names of all pre-activations; F numbers per token travel."""
        whole = self._of_all_features(pre.device)
        step = max(1, _ENTRIES // (self.width * self.shards.size)) if scope == "token" else max(1, len(pre))
        parts = []
        for rows in pre.split(step) if len(pre) else (pre,):
            every = self.shards.all_gather(rows).transpose(0, 1).reshape(len(rows), -1)
            parts.append(self._own(whole.select(every, layer)))
        for name, buffer in self.activation.named_buffers():  # running statistics that `select` has moved
            buffer.copy_(self.part(name, whole.get_buffer(name)))
        if all(isinstance(part, Tensor) for part in parts):
            return torch.cat([part for part in parts if isinstance(part, Tensor)])
        pairs = [part if isinstance(part, Pairs) else Pairs.from_mask(part) for part in parts]
        found = pairs[0]
        for more in pairs[1:]:
            found = Pairs.cat(found, more)
        return found

    def _of_all_features(self, device: torch.device) -> Activation:
        """The activation with the parameters and buffers of all features, in the own one's mode."""
        whole = self.whole.to(device)
        theirs = _tensors(whole)
        for name, tensor in _tensors(self.activation).items():
            dim = self.dims[name]
            tensor = tensor.detach()
            everything = tensor if dim is None else torch.cat(list(self.shards.all_gather(tensor)), dim)
            theirs[name].data = everything.clone()
        whole.train(self.activation.training)
        whole.tracking = self.activation.tracking
        return whole

    def _own(self, selected: Pairs | Tensor) -> Pairs | Tensor:
        start = self.shards.rank * self.width
        if isinstance(selected, Tensor):
            return selected[:, start : start + self.width]
        mine = (selected.features >= start) & (selected.features < start + self.width)
        counts = torch.bincount(selected.tokens[mine], minlength=selected.n_tokens)
        return Pairs(selected.features[mine] - start, F.pad(counts.cumsum(0), (1, 0)), self.width)

    # -- activations that need less ------------------------------------------------------------------------------------
    def top(self, score: Tensor, k: int, floor: float = 0.0) -> Pairs:
        """This process's share of the k largest entries of every token, above `floor`."""
        return select_topk(score, k, self.shards, floor)

    def largest(self, pre: Tensor, budget: int) -> Tensor:
        """The largest `budget` of all entries of a batch, the same on every process."""
        return batch_winners(pre, budget, self.shards)

    def screen_top(self, screen: Screen, k: int, magnitude: bool = False) -> Chosen:
        """As `top`, from a product in low precision."""
        return screen_topk(screen, k, self.shards, magnitude)

    def screen_largest(self, screen: Screen, budget: int) -> tuple[Chosen, Tensor] | None:
        """This process's share of the positive ones of `largest`, and these, from a product in low precision."""
        return screen_batch(screen, budget, self.shards)
