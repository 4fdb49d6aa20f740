"""What the processes that share the features of a layer can tell each other about its pre-activations."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from clt_lightning.transcoder.pairs import Pairs
from clt_lightning.transcoder.screening import Chosen, Screen


class Exchange(Protocol):
    """The way from one process's features to those of all; every process must ask for the same, in the same order."""

    def select(self, pre: Tensor, layer: int, scope: Literal["token", "batch"]) -> Pairs | Tensor:
        """This process's part of what the activation's `select` names of all pre-activations, which all get.

        Args:
            pre: `(tokens, width)`, this process's columns.
            layer: which layer's.
            scope: `token`: a few tokens at a time; `batch`: all at once.
        """

    def top(self, score: Tensor, k: int, floor: float = 0.0) -> Pairs:
        """This process's share of the k largest entries of every token, above `floor`; k numbers per token travel."""

    def largest(self, pre: Tensor, budget: int) -> Tensor:
        """The largest `budget` of all entries of a batch, the same on every process; so many numbers travel."""

    def screen_top(self, screen: Screen, k: int, magnitude: bool = False) -> Chosen:
        """As `top`, from a product in low precision."""

    def screen_largest(self, screen: Screen, budget: int) -> tuple[Chosen, Tensor] | None:
        """This process's share of the positive ones of `largest`, and these, from a product in low precision."""
