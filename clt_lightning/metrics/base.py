"""What all metrics share: float64 state that survives casts, and one way to walk over large activations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from clt_lightning.core.errors import UserError

# Elements of one float64 working block: 1 MB on a CPU (fits its cache, and malloc hands it out again without new pages:
# twice as fast as 2 MB), more on a GPU, which would wait for launches otherwise.
_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 22}


class ExactMetric(Metric):
    """A torchmetrics metric whose state keeps its type (float64, int64) whatever the model around it is cast to.

    torchmetrics already ignores `.half()` and `.float()`, but not `.to(torch.bfloat16)`: sums over millions of tokens
    would silently lose their digits. Moves between devices work as usual.
    """

    full_state_update = False
    is_differentiable = False
    per_layer = False
    """Whether `compute` gives one number per layer, `(L,)`."""

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)
        if not self.per_layer:
            return wrapped

        @functools.wraps(compute)
        def one_number_a_layer(*args: Any, **kwargs: Any) -> Tensor:
            # torchmetrics squeezes results of one element: a model of one layer must not change the shape
            found: Tensor = wrapped(*args, **kwargs)
            return found.reshape(-1)

        return one_number_a_layer

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, exclude_state)


class MeanPerLayer(ExactMetric):
    """A mean over tokens of each layer; a class of it says in `update` what is added up.

    Args:
        n_layers: layers L.
    """

    per_layer = True
    #: of the sums: float64, or int64 where counts are added up
    dtype_of_sums: ClassVar[torch.dtype] = torch.float64
    total: Tensor
    count: Tensor

    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self.n_layers = n_layers
        self.add_state("total", torch.zeros(n_layers, dtype=self.dtype_of_sums), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def compute(self) -> Float[Tensor, " layers"]:
        """The mean of each layer, `(L,)` float64; NaN without tokens."""
        return self.total.double() / self.count


def metric_device(device: torch.device) -> torch.device:
    """The device on which the states of a model on `device` can live: Apple's MPS has no float64, so the CPU there."""
    return torch.device("cpu") if device.type == "mps" else device


def blocks(*tensors: Tensor, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Walk over one layer's activations in float64 pieces, so that no float64 copy of the whole is ever made.

    Args:
        tensors: of one shape `(*tokens, d)`, any strides: views such as those of `select` are not copied as a whole.
        device: where the pieces are wanted.

    Yields:
        For each piece a tuple with one `(n, d)` float64 tensor per input; tokens in order, none twice.
    """
    if tensors[0].numel() == 0:
        return
    if tensors[0].ndim == 1:
        tensors = tuple(tensor[None] for tensor in tensors)
    width, rows = tensors[0].shape[-1], tensors[0].shape[0]
    step = max(1, _BLOCK.get(device.type, _BLOCK["cpu"]) * rows // tensors[0].numel())
    for pieces in zip(*(tensor.split(step) for tensor in tensors)):
        yield tuple(piece.to(device).double().reshape(-1, width) for piece in pieces)


def check_shape(metric: Metric, name: str, tensor: Tensor, *, expected: Sequence[int | None]) -> None:
    """Refuse a tensor whose first and last dimensions are not as `expected` (`None`: anything), naming both shapes.

    Args:
        metric: the metric that was called, for the message.
        name: the argument's name, for the message.
        tensor: what was given.
        expected: sizes of the first and of the last dimension.

    Raises:
        UserError: on a mismatch.
    """
    first, last = expected
    shape = tuple(tensor.shape)
    if len(shape) < 2 or (first is not None and shape[0] != first) or (last is not None and shape[-1] != last):
        wanted = f"({'*' if first is None else first}, tokens..., {'*' if last is None else last})"
        raise UserError(f"{type(metric).__name__}: {name} must have shape {wanted}, got {shape}")


def check_same(metric: Metric, names: tuple[str, str], a: Tensor, b: Tensor) -> None:
    """Refuse two tensors of different shapes: broadcasting would give a number, and a wrong one.

    Raises:
        UserError: naming both shapes.
    """
    if a.shape != b.shape:
        raise UserError(
            f"{type(metric).__name__}: {names[0]} {tuple(a.shape)} and {names[1]} {tuple(b.shape)} must have one shape"
        )
