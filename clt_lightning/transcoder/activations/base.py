"""What an activation is: which pre-activations become codes, and with what gradient.

Every activation answers two questions on the pre-activations `(tokens, F)` of one layer: `select` (without gradients)
names the pairs that can matter, `values` turns their pre-activations into codes, differentiably. The dense reference
(`dense`) is the same two steps on a full mask, so that both paths share one definition.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clt_lightning.core.classes import Recorded
from clt_lightning.transcoder.activations.exchange import Exchange
from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.screening import Chosen, Screen

#: What `select` must see to decide on one entry: the entry alone, all features of its token, or the whole batch
Scope = Literal["feature", "token", "batch"]


class Activation(Recorded, nn.Module):
    """Base class. An activation is built once for its transcoder, which then owns its parameters and buffers.

    A class of one's own defines `select` and `values` (CONTRIBUTING.md), and states its `scope`: where the features are
    divided over processes, `select` then sees what it needs. Arguments of its `__init__` are kept for files.

    Attributes:
        scope: what `select` must see to decide on one entry. `feature`: that entry alone, which costs nothing where
            features are divided. `token`: the entries of all features of the token. `batch`: those of all tokens too.
            A class that defines `select` and states no scope has `batch`, which is right for all.
    """

    scope: ClassVar[Scope] = "batch"
    #: whether codes may be negative
    signed: ClassVar[bool] = False
    #: what the transcoder multiplies a [CLS] token's pre-activations by while codes are chosen
    cls_weight = 1.0
    #: whether running statistics of the training batches are kept
    tracking = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What was written for another `select` is not inherited along with a new one."""
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "select" in own:
            if "scope" not in own:
                cls.scope = Activation.scope
            for name in ("choose", "select_part", "choose_part"):
                if name not in own:
                    setattr(cls, name, getattr(Activation, name))

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
        """Creates parameters and buffers for `n_layers` x `n_features` features. Called by the transcoder.

        Where features are divided, those whose shape depends on `n_features` are divided with them.
        """

    def thresholds(self) -> Float[Tensor, "layers features"] | float:
        """What pre-activations must exceed to become codes, `(layers, F)` or one number."""
        return 0.0

    def select(self, pre: Float[Tensor, "tokens features"], layer: int) -> Pairs | Bool[Tensor, "tokens features"]:
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

    def select_part(
        self, pre: Float[Tensor, "tokens width"], layer: int, exchange: Exchange
    ) -> Pairs | Bool[Tensor, "tokens width"]:
        """What `select` names of this process's features, where others hold the rest.

        Right for every activation; one that needs less than all pre-activations overrides it.

        Args:
            pre: `(tokens, width)`, of this process's features.
            layer: which layer's.
            exchange: the way to the other processes.
        """
        return self.select(pre, layer) if self.scope == "feature" else exchange.select(pre, layer, self.scope)

    def choose_part(self, screen: Screen, layer: int, exchange: Exchange) -> Chosen | None:
        """As `choose`, for this process's features; None must be given on all processes or on none."""
        return self.choose(screen, layer) if self.scope == "feature" else None

    def values(
        self,
        pre: Float[Tensor, " pairs"] | Float[Tensor, "tokens features"],
        features: Int[Tensor, " pairs"] | None,
        layer: int,
    ) -> Float[Tensor, " pairs"] | Float[Tensor, "tokens features"]:
        """Codes of selected pre-activations, differentiable; each from its own pre-activation alone.

        Args:
            pre: `(pairs,)` pre-activations of `features (pairs,)`, or `(tokens, F)` with `features=None`.
            features: the feature of each entry; None for all of them.
            layer: which layer's pre-activations these are.
        """
        raise NotImplementedError


def dense(
    activation: Activation, pre: Float[Tensor, "tokens features"], layer: int
) -> Float[Tensor, "tokens features"]:
    """Plain dense reference: codes `(tokens, F)` of pre-activations `(tokens, F)`, differentiable."""
    selected = activation.select(pre.detach(), layer)
    if isinstance(selected, Pairs):
        mask = torch.zeros_like(pre, dtype=torch.bool)
        mask[selected.tokens, selected.features] = True
    else:
        mask = selected
    return torch.where(mask, activation.values(pre, None, layer), pre.new_zeros(()))
