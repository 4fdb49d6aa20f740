"""A watch for NaN and infinity: in every step for a few microseconds, and once more before weights are written."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError

_SITES = ("x", "y", "y_hat")
_WORDS = {"x": "the CLIP's MLP inputs (x)", "y": "the CLIP's MLP outputs (y)", "y_hat": "the reconstruction (y_hat)"}
_BACKBONE = "look at the images of this batch, and take model.backbone.precision: fp32"
_TRAINING = "lower the learning rate, or set trainer.gradient_clip_val"


def _layers(numbers: Iterable[int]) -> str:
    listed = list(numbers)
    return f"layer{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"


def message(step: int, loss: float, parts: Mapping[str, float], sites: Mapping[str, list[float]]) -> str | None:
    """What is not finite in a step, and where.

    Args:
        step: optimizer steps before this one.
        loss: the loss.
        parts: the loss's parts.
        sites: for `x`, `y` and `y_hat` one number per layer, not finite if anything in that layer is not.

    Returns:
        None if everything is finite.
    """
    bad = {site: [layer for layer, v in enumerate(sites[site]) if not math.isfinite(v)] for site in _SITES}
    bad_parts = [name for name, value in parts.items() if not math.isfinite(value)]
    first = next((site for site in _SITES if bad[site]), None)
    if first is None and not bad_parts and math.isfinite(loss):
        return None
    if first is None:
        where, advice = f"the loss is {loss} (part: {', '.join(bad_parts) or 'sum'})", _TRAINING
    else:
        where = f"{_WORDS[first]} of {_layers(bad[first])} hold NaN or infinity"
        advice = _TRAINING if first == "y_hat" else _BACKBONE
        if not math.isfinite(loss):
            where += f"; the loss is {loss}"
    return f"step {step}: {where}. The run stops here and its last checkpoint stays as it is; to go on, {advice}"


@dataclass
class _Pending:
    step: int
    names: list[str]
    layers: int
    host: Tensor
    ready: torch.cuda.Event

    def message(self) -> str | None:
        values = self.host.tolist()
        n, layers = len(self.names), self.layers
        sites = {site: values[1 + n + i * layers : 1 + n + (i + 1) * layers] for i, site in enumerate(_SITES)}
        return message(self.step, values[0], dict(zip(self.names, values[1:])), sites)


class FiniteWatch:
    """Looks at every step; on a GPU without waiting for it, so that the answer may come a few steps late."""

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()

    @torch.no_grad()
    def look(self, step: int, loss: Tensor, parts: Mapping[str, Tensor], x: Tensor, y: Tensor, y_hat: Tensor) -> None:
        """Takes in one step.

        Args:
            step: optimizer steps before this one.
            loss: scalar.
            parts: scalars, the loss's parts.
            x, y: `(layers, tokens, d_model)` of this step's batch, before any buffer.
            y_hat: `(layers, tokens, d_model)`.

        Raises:
            UserError: this step (on a GPU: this or one shortly before) is not finite; step and layers are named.
        """
        if loss.device.type != "cuda":
            # a NaN in x can vanish in an activation's comparison, and both can wait in a buffer; y_hat's is in the loss
            if not math.isfinite(loss.item() + _sums(x).sum().item() + _sums(y).sum().item()):
                sites = {"x": _sums(x).tolist(), "y": _sums(y).tolist(), "y_hat": _sums(y_hat).tolist()}
                told = message(step, loss.item(), {name: part.item() for name, part in parts.items()}, sites)
                if told is not None:
                    raise UserError(told)
            return
        report = torch.cat(
            [torch.stack([loss.float(), *(p.float() for p in parts.values())]), _sums(x), _sums(y), _sums(y_hat)]
        )
        host = torch.empty(report.shape, dtype=report.dtype, pin_memory=True)
        host.copy_(report, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        self._pending.append(_Pending(step, list(parts), len(x), host, ready))
        self._check()

    def settle(self) -> str | None:
        """Waits for the steps that are still under way, as one does before writing a checkpoint.

        Returns:
            What is not finite in one of them; None if all are fine.
        """
        told = None
        while self._pending:
            self._pending[0].ready.synchronize()
            told = told or self._pending.popleft().message()
        return told

    def _check(self) -> None:
        while self._pending and self._pending[0].ready.query():
            told = self._pending.popleft().message()
            if told is not None:
                raise UserError(told)


def _sums(t: Tensor) -> Tensor:
    return t.detach().sum(dim=(1, 2), dtype=torch.float32)


@torch.no_grad()
def not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; one transfer from the device for all of them."""
    tensors = [(name, t) for name, t in named if t.is_floating_point() and t.numel()]
    if not tensors:
        return []
    # amin and amax carry a NaN on, and need no mask as large as the weights
    flags = torch.stack([torch.isfinite(torch.stack(torch.aminmax(_local(t).detach()))).all() for _, t in tensors])
    return [name for (name, _), fine in zip(tensors, flags.tolist()) if not fine]


def _local(t: Tensor) -> Tensor:
    """This process's part of a sharded tensor."""
    return t.to_local() if hasattr(t, "to_local") else t
