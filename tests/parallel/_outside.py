"""Activations from outside the package, one of each scope, and some that change one of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clt_lightning.training.losses import LossInputs, LossTerm
from clt_lightning.transcoder import Activation, BatchTopK, ReLU, TopK
from clt_lightning.transcoder.pairs import Pairs


class Gate(Activation):
    """What lies above a limit that each feature learns, times what each layer learns; later features begin higher."""

    scope = "feature"
    limit: nn.Parameter
    gain: nn.Parameter

    def __init__(self, least: float = 0.1) -> None:
        super().__init__()
        self.least = least

    def build(self, n_layers: int, n_features: int) -> None:
        self.limit = nn.Parameter(self.least + torch.linspace(0, 0.2, n_features).expand(n_layers, -1).clone())
        self.gain = nn.Parameter(torch.ones(n_layers))

    def select(self, pre: Tensor, layer: int) -> Tensor:
        return pre > self.limit[layer].detach()

    def values(self, pre: Tensor, features: Tensor | None, layer: int) -> Tensor:
        limit = self.limit[layer]
        return self.gain[layer] * torch.relu(pre - (limit if features is None else limit[features]))


class NearTop(Activation):
    """What reaches a share of its token's largest pre-activation, in units of each feature's own scale."""

    scope = "token"
    scale: Tensor

    def __init__(self, share: float = 0.6) -> None:
        super().__init__()
        self.share = share

    def build(self, n_layers: int, n_features: int) -> None:
        self.register_buffer("scale", torch.linspace(0.5, 1.5, n_features), persistent=False)

    def select(self, pre: Tensor, layer: int) -> Tensor:
        scaled = pre * self.scale
        return (scaled >= self.share * scaled.amax(1, keepdim=True)) & (pre > 0)

    def values(self, pre: Tensor, features: Tensor | None, layer: int) -> Tensor:
        return torch.relu(pre)


class AboveMean(Activation):
    """What lies well above the mean of the batch; of evaluation, above the running mean of training."""

    mean: Tensor

    def build(self, n_layers: int, n_features: int) -> None:
        self.register_buffer("mean", torch.zeros(n_layers))

    def select(self, pre: Tensor, layer: int) -> Tensor:
        if self.training and self.tracking:
            self.mean[layer] = 0.5 * self.mean[layer] + 0.5 * pre.mean()
        return pre > (pre.mean() if self.training else self.mean[layer]) + 0.5

    def values(self, pre: Tensor, features: Tensor | None, layer: int) -> Tensor:
        return torch.relu(pre)


class FewTopK(TopK):
    """Half as many as TopK, by another rule than the one it inherits."""

    def select(self, pre: Tensor, layer: int) -> Pairs:
        return Pairs.from_mask((pre >= pre.topk(max(1, self.k // 2), 1).values.amin(1, keepdim=True)) & (pre > 0))


class Crowned(ReLU):
    """The largest of each token; what it changes decides alone."""

    def select(self, pre: Tensor, layer: int) -> Tensor:
        return pre >= pre.amax(1, keepdim=True).clamp_min(0)


class Eager(BatchTopK):
    """A budget twice as large, through the way that its parent leaves open."""

    def budget(self, layer: int, n_tokens: int) -> int:
        return 2 * super().budget(layer, n_tokens)


class Squares(LossTerm):
    """A sum over features, of which a process has a part."""

    needs = ("codes",)
    coefficient = 0.03

    def value(self, given: LossInputs) -> Tensor:
        return torch.stack([given.codes.dense_layer(i).square().sum() for i in range(given.codes.n_layers)]).mean()


class Shift(LossTerm):
    """Of what all processes hold."""

    coefficient = 0.2

    def value(self, given: LossInputs) -> Tensor:
        return (given.y - given.y_hat).mean().square()
