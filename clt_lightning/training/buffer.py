"""A shuffle buffer of activations: a step's tokens come from many batches of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError


class ActivationBuffer:
    """Holds up to `capacity` tokens; every batch goes in, as many random tokens come out.

    While it fills, tokens are drawn from what is there and stay in. Once full, drawn tokens leave and the batch takes
    their places, so that from then on every token is used exactly once.

    Args:
        capacity: tokens held.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise UserError(f"the activation buffer needs room for at least 1 token, got {capacity}")
        self.capacity = capacity
        self.size = 0
        self._x: Tensor | None = None
        self._y: Tensor | None = None
        self._marks: Tensor | None = None

    def exchange(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Puts a batch in and takes as many tokens out.

        Args:
            x: `(layers, tokens, d_model)`.
            y: the same shape.
            generator: CPU generator of the draw.

        Returns:
            x and y of the drawn tokens, same shapes.

        Raises:
            UserError: the batch alone is larger than the buffer.
        """
        return self.exchange_marked(x, y, None, generator)[:2]

    def exchange_marked(
        self, x: Tensor, y: Tensor, marks: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `exchange`, with what is known of each token: `marks (tokens, numbers)`, which stay with their tokens."""
        n = x.shape[1]
        if n > self.capacity:
            raise UserError(f"model.tokens.buffer holds {self.capacity} tokens, one batch has {n}: make it larger")
        if self._x is None or self._y is None:
            self._x = x.new_empty(x.shape[0], self.capacity, x.shape[2])
            self._y = torch.empty_like(self._x)
        if marks is not None and self._marks is None:
            self._marks = marks.new_full((self.capacity, marks.shape[1]), -1)
        room = min(n, self.capacity - self.size)
        if room:
            self._x[:, self.size : self.size + room] = x[:, :room]
            self._y[:, self.size : self.size + room] = y[:, :room]
            if marks is not None and self._marks is not None:
                self._marks[self.size : self.size + room] = marks[:room]
            self.size += room
        drawn = torch.randperm(self.size, generator=generator)[:n].to(x.device)
        out = self._x[:, drawn], self._y[:, drawn], None if self._marks is None else self._marks[drawn]
        rest = n - room
        if rest:
            self._x[:, drawn[:rest]] = x[:, room:]
            self._y[:, drawn[:rest]] = y[:, room:]
            if marks is not None and self._marks is not None:
                self._marks[drawn[:rest]] = marks[room:]
        return out

    def state_dict(self) -> dict[str, Any]:
        """Contents, for an exact resume."""
        if self._x is None or self._y is None:
            return {"capacity": self.capacity, "x": None, "y": None}
        return {
            "capacity": self.capacity,
            "x": self._x[:, : self.size].cpu().clone(),
            "y": self._y[:, : self.size].cpu().clone(),
            "marks": None if self._marks is None else self._marks[: self.size].cpu().clone(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str) -> None:
        """Takes contents back.

        Raises:
            UserError: the state is of another capacity.
        """
        if state["capacity"] != self.capacity:
            raise UserError(
                f"the checkpoint's activation buffer holds {state['capacity']} tokens, model.tokens.buffer says "
                f"{self.capacity}: resume with the same value"
            )
        if state["x"] is None:
            self.size, self._x, self._y = 0, None, None
            return
        x, y = state["x"].to(device), state["y"].to(device)
        self.size = x.shape[1]
        self._x = x.new_empty(x.shape[0], self.capacity, x.shape[2])
        self._y = torch.empty_like(self._x)
        self._x[:, : self.size], self._y[:, : self.size] = x, y
        if (marks := state.get("marks")) is not None:
            self._marks = marks.new_full((self.capacity, marks.shape[1]), -1).to(device)
            self._marks[: self.size] = marks.to(device)
