"""What an activation is: which pre-activations become codes, and with what gradient.

Every activation answers two questions on the pre-activations `(tokens, F)` of one layer: `select` (without gradients)
names the pairs that can matter, `values` turns their pre-activations into codes, differentiably. The dense reference
(`dense`) is the same two steps on a full mask, so that both paths share one definition.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clt_lightning.transcoder.codes import Pairs
from clt_lightning.transcoder.screening import Chosen, Screen


class Activation(nn.Module):
    """Base class. An activation is built once for its transcoder, which then owns its parameters and buffers."""

    #: whether running statistics of the training batches are kept
    tracking = True

    #: what a [CLS] token's pre-activations are multiplied by, by the transcoder, where codes are chosen
    cls_weight = 1.0

    @property
    def most_active(self) -> int | None:
        """The largest number of codes that tokens have on average, where the activation bounds it."""
        return None

    @contextmanager
    def not_tracking(self) -> Iterator[None]:
        """While active, what is selected leaves no trace in running statistics (BatchTopK's threshold)."""
        before, self.tracking = self.tracking, False
        try:
            yield
        finally:
            self.tracking = before

    def build(self, n_layers: int, n_features: int) -> None:
        """Creates parameters and buffers for `n_layers` x `n_features` features. Called by the transcoder."""

    def config(self) -> dict[str, Any]:
        """`{"class_path": name, "init_args": arguments}`: what builds the same activation again."""
        return {"class_path": type(self).__name__, "init_args": self.init_args()}

    def init_args(self) -> dict[str, Any]:
        return {}

    def select(self, pre: Tensor, layer: int) -> Pairs | Tensor:
        """What can be active or get a gradient: pairs, or a `(tokens, F)` mask where their number is not bounded.

        Args:
            pre: `(tokens, F)`, detached.
            layer: which layer's pre-activations these are.
        """
        raise NotImplementedError

    def choose(self, screen: Screen, layer: int) -> Chosen | None:
        """The pairs that `select` would name, from a product in low precision, and their exact pre-activations.

        Args:
            screen: of one layer.
            layer: which.

        Returns:
            None where an fp32 product is to be made instead; activations that know of no better way need not override.
        """
        return None

    def values(self, pre: Tensor, features: Tensor | None, layer: int) -> Tensor:
        """Codes of selected pre-activations, differentiable.

        Args:
            pre: `(pairs,)` pre-activations of `features (pairs,)`, or `(tokens, F)` with `features=None`.
            features: the feature of each entry; None for all of them.
            layer: which layer's pre-activations these are.
        """
        raise NotImplementedError


def dense(activation: Activation, pre: Tensor, layer: int) -> Tensor:
    """Plain dense reference: codes `(tokens, F)` of pre-activations `(tokens, F)`, differentiable."""
    selected = activation.select(pre.detach(), layer)
    if isinstance(selected, Pairs):
        mask = torch.zeros_like(pre, dtype=torch.bool)
        mask[selected.tokens, selected.features] = True
    else:
        mask = selected
    return torch.where(mask, activation.values(pre, None, layer), pre.new_zeros(()))
