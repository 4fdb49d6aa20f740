"""Reading and overriding any site of any block, for a while: the one place that reaches into a running model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clt_lightning.backbone.families.base import Family
from clt_lightning.core.errors import UserError
from clt_lightning.core.sites import FINAL_SITES

ReadFn = Callable[[int, Tensor], None]
"""`fn(layer, tensor)`: sees a site's tensor as it goes on in the forward."""

OverrideFn = Callable[[int, Tensor, Callable[[], Tensor]], Tensor]
"""`fn(layer, x, compute) -> tensor`: `compute()` is the site's own tensor, `x` what it is computed from."""

Key = tuple[str, int]
#: What a block is called with, before anything overrides it
ENTRY = "entry"


class Taps:
    """Routes sites through functions. A block without one runs its own `forward`.

    While a block is tapped, its `forward` is shadowed by an instance attribute that runs the same parts one by one
    (`Family.run_block`), to the same bits. A hook on a part could not do that: it comes after the part was paid for,
    and the residual additions are no modules.

    Args:
        family: the model in parts.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._reads: dict[Key, list[tuple[object, ReadFn]]] = {}
        self._overrides: dict[Key, list[tuple[object, OverrideFn]]] = {}
        self._taps: Counter[int] = Counter()  # by layer; -1 is the last norm
        self.depth = 0  # forwards under way: more than one when an override's function runs the model itself
        self._caller: tuple[bool, torch.dtype] | None = None

    @contextmanager
    def running(self, device: torch.device, grad: bool) -> Iterator[None]:
        """The model's own precision, whatever autocast surrounds it; gradients only where asked for and allowed."""
        kind, outer = device.type, self._caller
        self.depth += 1
        self._caller = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        try:
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()), torch.autocast(kind, enabled=False):
                yield
        finally:
            self.depth -= 1
            self._caller = outer

    @contextmanager
    def read(self, fn: ReadFn, keys: Sequence[Key]) -> Iterator[None]:
        """While active, `fn` sees the tensors of some sites, an override's where there is one."""
        with self._entered(self._reads, fn, keys):
            yield

    @contextmanager
    def override(self, fn: OverrideFn, keys: Sequence[Key]) -> Iterator[None]:
        """While active, `fn` makes the tensors of some sites; of nested overrides of a site the innermost wins."""
        with self._entered(self._overrides, fn, keys):
            yield

    @contextmanager
    def _entered(self, table: dict[Key, list[tuple[object, Any]]], fn: Any, keys: Sequence[Key]) -> Iterator[None]:
        token = object()
        entered: list[Key] = []
        try:
            for key in keys:
                self._tap(key, 1)
                table.setdefault(key, []).append((token, fn))
                entered.append(key)
            yield
        finally:
            for key in entered:
                # by token, not from the top: contexts that end out of order take only their own entry away
                table[key] = [entry for entry in table[key] if entry[0] is not token]
                if not table[key]:
                    del table[key]
                self._tap(key, -1)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While active, no reader and no override that was there before is at work: the model runs as it is."""
        reads, overrides = self._reads, self._overrides
        self._reads, self._overrides = {}, {}
        try:
            yield
        finally:
            self._reads, self._overrides = reads, overrides

    def _tap(self, key: Key, change: int) -> None:
        site, layer = key
        if site == "final":
            return  # the backbone passes it through `at` by itself
        place = -1 if site in FINAL_SITES else layer
        module: Any = self._family.blocks[layer] if place >= 0 else self._family.norm
        self._taps[place] += change
        if self._taps[place] == 0:
            del module.forward
        elif self._taps[place] == 1 and change == 1:
            module.forward = partial(self._run_block, layer) if place >= 0 else self._run_norm

    def _run_block(self, layer: int, *args: Any, **kwargs: Any) -> Any:
        for _, fn in self._reads.get((ENTRY, layer), ()):
            fn(layer, self._turned(ENTRY, args[0]))
        return self._family.run_block(layer, _At(self, layer), *args, **kwargs)

    def _run_norm(self, x: Tensor) -> Tensor:
        norm: Any = self._family.norm
        return self.at("final_tokens", x, lambda: type(norm).forward(norm, x), layer=0)

    def at(self, site: str, x: Tensor, compute: Callable[[], Tensor], layer: int = 0) -> Tensor:
        """A site's tensor in a running forward: the innermost override's, else its own; readers see it."""
        key = (site, layer)
        stack = self._overrides.get(key)
        value = self._overridden(key, x, compute, stack[-1][1]) if stack else compute()
        for _, fn in self._reads.get(key, ()):
            fn(layer, self._turned(site, value))
        return value

    def wants(self, site: str, layer: int) -> bool:
        """Whether anything reads or overrides a site of a block."""
        return (site, layer) in self._reads or (site, layer) in self._overrides

    def tapped(self, layer: int) -> bool:
        """Whether anything reads or overrides a site of a block."""
        return any(key[1] == layer for table in (self._reads, self._overrides) for key in table)

    def _overridden(self, key: Key, x: Tensor, compute: Callable[[], Tensor], fn: OverrideFn) -> Tensor:
        site, layer = key
        kind = x.device.type

        def own() -> Tensor:
            with torch.autocast(kind, enabled=False):
                return self._turned(site, compute())

        inputs = self._turned(site, x)
        # the model runs outside the caller's autocast; the caller's function runs as the caller set it up
        enabled, dtype = self._caller or (False, None)
        with torch.autocast(kind, dtype=dtype, enabled=enabled):
            value = fn(layer, inputs, own)
        if value.shape != inputs.shape:
            axes = "(images, embed_dim)" if site == "final" else "(images, positions, d_model)"
            raise UserError(
                f"the override of layer {layer}'s {site} must return {axes} = {tuple(inputs.shape)}, "
                f"got {tuple(value.shape)}"
            )
        return self._turned(site, value.to(x.dtype))

    def _turned(self, site: str, tokens: Tensor) -> Tensor:
        """Between `(images, positions, d_model)` and the order in which the blocks run."""
        return tokens if self._family.batch_first or site in FINAL_SITES else tokens.transpose(0, 1)


class _At:
    """The taps of one block, as its family calls them."""

    def __init__(self, taps: Taps, layer: int) -> None:
        self._taps, self._layer = taps, layer

    def __call__(self, site: str, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        return self._taps.at(site, x, compute, self._layer)

    def wants(self, site: str) -> bool:
        return self._taps.wants(site, self._layer)
