"""A model that never changes: no gradients, eval mode for ever, its own precision, out of its owner's sight."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from clt_lightning.backbone.families.base import Family
from clt_lightning.backbone.taps import Taps
from clt_lightning.core.errors import UserError, setting

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
Precision = Literal["fp32", "bf16", "fp64"]


class Frozen(nn.Module):
    """What `Backbone` is as a module: frozen, and what it is called and made of."""

    #: Arguments by place and by name of the call that made it; None: it was made by other hands
    made_with: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        # a run records what its backbone was made with, whatever class it is of
        object.__setattr__(self, "made_with", (args, kwargs))
        return self

    def __init__(self, family: Family, name: str, pretrained: str | None, precision: str) -> None:
        super().__init__()
        family.model.requires_grad_(False).eval()
        # not through nn.Module's attribute setting: a registered child would appear in parameters() and state_dict()
        object.__setattr__(self, "_model", family.model)
        self.family = family
        self.name, self.pretrained, self.precision = name, pretrained, precision
        self.blocks: list[nn.Module] = family.blocks
        self.n_layers, self.d_model = len(family.blocks), family.d_model
        self.tokens = family.tokens
        self.n_positions, self.n_prefix = self.tokens.n_positions, self.tokens.n_prefix
        self.has_cls, self.n_registers = self.tokens.has_cls, self.tokens.n_registers
        self.grid, self.image_size = family.grid, family.image_size
        self.embed_dim = family.embed_dim
        self.logit_scale = 100.0
        self.preprocess, self.mean, self.std = family.transform()
        self.taps = Taps(family)
        self._sha256: str | None = None

    @property
    def model(self) -> Any:
        """The library's own module."""
        return self.__dict__["_model"]

    @property
    def batch_first(self) -> bool:
        return self.family.batch_first

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The type of the residual stream, so of captured activations."""
        return PRECISIONS[self.precision]

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever is asked for."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Stay frozen, whatever is asked for."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.to()`, `.cuda()`, `.double()` of a parent all end here. Ask where `fn` would put a tensor, and follow it in
        # device only: the precision is the backbone's own
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        target = fn(torch.empty(0, device=self.device)).device
        if target != self.device:
            self.model.to(target)
        return self

    @property
    def has_random_weights(self) -> bool:
        """Whether no weights were loaded."""
        return self.pretrained is None

    def describe(self) -> dict[str, Any]:
        """What a run records of its backbone: plain values, ready for JSON."""
        if self._sha256 is None:
            self._sha256 = _hash_weights(self.model)
        return {
            "name": self.name,
            "pretrained": self.pretrained,
            "precision": self.precision,
            "weights_sha256": self._sha256,
            "embed_dim": self.embed_dim,
            "image_size": self.image_size,
            "grid": list(self.grid),
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "has_cls": self.has_cls,
            "n_registers": self.n_registers,
        }

    def extra_repr(self) -> str:
        return (
            f"{self.name!r}, pretrained={self.pretrained!r}, precision={self.precision!r}, n_layers={self.n_layers}, "
            f"d_model={self.d_model}, n_positions={self.n_positions}"
        )


def check_precision(precision: str) -> str:
    """A precision's name as it is.

    Raises:
        UserError: it is none.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"{setting('precision')}: '{precision}' is not known for the backbone: choose one of "
            f"{', '.join(PRECISIONS)}"
        )
    return precision


def _hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
