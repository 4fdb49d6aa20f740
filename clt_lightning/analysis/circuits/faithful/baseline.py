"""What a unit is set to when it is left out: its usual code at each position, over training images.

A masked unit at 0 is far from anything that the model has seen, where the unit is always on (a position's own, say).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.faithful.dictionary import Dictionary, observe_units
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import whole_file
from clt_lightning.core.progress import Progress

Kind = Literal["median", "mean", "zero"]
KINDS = ("median", "mean", "zero")
#: Bytes of codes and errors that a pass over the images keeps; more layers take more passes
_BYTES = 2_000_000_000
_FORMAT = "clt_lightning.baseline"


@dataclass(frozen=True)
class Baseline:
    """Codes and errors that stand for "nothing in particular", at each position.

    Attributes:
        kind: `median`, `mean` (over images, unit by unit and position by position) or `zero`.
        codes: `(layers, positions, n_features)`.
        errors: `(layers, positions, d)`.
        n_images: how many images it is from; 0 for `zero`.
    """

    kind: str
    codes: Tensor
    errors: Tensor
    n_images: int

    @classmethod
    def zeros(cls, clip: Backbone, dictionary: Dictionary) -> Self:
        """All codes and errors 0."""
        L, P = len(dictionary.blocks), clip.n_positions
        return cls("zero", torch.zeros(L, P, dictionary.n_features), torch.zeros(L, P, dictionary.d), 0)

    def save(self, path: str | Path, about: dict[str, str] | None = None) -> Path:
        """Write it to a safetensors file, whole or not at all."""
        import safetensors.torch

        tensors = {"codes": self.codes.cpu().contiguous(), "errors": self.errors.cpu().contiguous()}
        facts = {"format": _FORMAT, "kind": self.kind, "n_images": str(self.n_images)} | (about or {})
        with whole_file(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, facts)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> tuple[Self, dict[str, str]]:
        """The inverse of `save`, and what was said about it.

        Raises:
            UserError: not such a file.
        """
        import safetensors

        try:
            with safetensors.safe_open(str(path), "pt") as file:
                facts = file.metadata() or {}
                if facts.get("format") != _FORMAT:
                    raise UserError(f"{path}: holds no baseline")
                return cls(
                    facts["kind"], file.get_tensor("codes"), file.get_tensor("errors"), int(facts["n_images"])
                ), facts
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as a baseline: {error}") from error

    def check(self, clip: Backbone, dictionary: Dictionary) -> None:
        """Whether it is one for this dictionary.

        Raises:
            UserError: it is of another size.
        """
        L, P = len(dictionary.blocks), clip.n_positions
        for name, found, width in (("codes", self.codes, dictionary.n_features), ("errors", self.errors, dictionary.d)):
            if tuple(found.shape) != (L, P, width):
                raise UserError(f"the baseline's {name} are {tuple(found.shape)}, expected {(L, P, width)}")


@torch.no_grad()
def baseline_of(
    clip: Backbone,
    dictionary: Dictionary,
    batches: Callable[[], Iterable[dict[str, Any]]],
    kind: Kind = "median",
    *,
    images: int | None = None,
    progress: bool = False,
    held_bytes: int = _BYTES,
) -> Baseline:
    """The baseline over a split's images: take training images, with the backbone's own transform.

    Medians are exact (of an even number, the lower one): the numbers of as many layers as fit are kept, so that a large
    model takes several passes.

    Args:
        clip: the backbone.
        dictionary: whose units.
        batches: begins a pass: batches with `image (images, 3, size, size)`.
        kind: `median`, `mean` or `zero` (which reads no image).
        images: how many there are, for the progress line.
        progress: say how far it is.
        held_bytes: memory for what is kept.

    Raises:
        UserError: an unknown kind, or no images.
    """
    if kind not in KINDS:
        raise UserError(f"a baseline is one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "zero":
        return Baseline.zeros(clip, dictionary)
    if kind == "mean":
        return _means(clip, dictionary, batches, images, progress)
    L = len(dictionary.blocks)
    parts: list[tuple[Tensor, Tensor]] = []
    n = 0
    while len(parts) < L:
        keepers = _Keepers(clip.n_positions, dictionary, len(parts), held_bytes, images)
        n = 0
        for seen in _passes(clip, dictionary, batches(), images, progress):
            keepers.add(seen.codes, seen.errors, seen.n_images)
            n += seen.n_images
        if not n:
            raise UserError("a baseline needs at least one image")
        parts += keepers.medians()
    codes, errors = (torch.stack([part[i] for part in parts]) for i in range(2))
    return Baseline(kind, codes, errors, n)


def _passes(
    clip: Backbone, dictionary: Dictionary, batches: Iterable[dict[str, Any]], images: int | None, progress: bool
) -> Iterator[Any]:
    with Progress("baseline", images, "images", show=progress) as bar:
        for batch in batches:
            yield observe_units(clip, dictionary, batch["image"].to(clip.device))
            bar.update(len(batch["image"]))


def _means(
    clip: Backbone,
    dictionary: Dictionary,
    batches: Callable[[], Iterable[dict[str, Any]]],
    images: int | None,
    progress: bool,
) -> Baseline:
    zeros = Baseline.zeros(clip, dictionary)
    codes, errors, n = zeros.codes.double(), zeros.errors.double(), 0
    for seen in _passes(clip, dictionary, batches(), images, progress):
        for total, found in ((codes, seen.codes), (errors, seen.errors)):
            for layer, values in enumerate(found):
                total[layer] += values.unflatten(0, (seen.n_images, -1)).sum(0).double().cpu()
        n += seen.n_images
    if not n:
        raise UserError("a baseline needs at least one image")
    return Baseline("mean", (codes / n).float(), (errors / n).float(), n)


class _Keepers:
    """All numbers of some layers, those of codes sparse; as many layers as fit, and at least one."""

    def __init__(self, positions: int, dictionary: Dictionary, first: int, held_bytes: int, images: int | None) -> None:
        self.P, self.F, self.first = positions, dictionary.n_features, first
        self.layers = range(first, len(dictionary.blocks))
        self._left = held_bytes
        self._expected = images
        #: by layer and batch: (places, values) of codes that are not 0, and errors (images, positions, d)
        self.codes: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.errors: dict[int, list[Tensor]] = {}
        self.n = 0

    def add(self, codes: list[Tensor], errors: list[Tensor], n_images: int) -> None:
        if not self.n:
            self._choose(codes, errors, n_images)
        for layer in self.layers:
            values = codes[layer].unflatten(0, (n_images, -1)).flatten(1).cpu()  # (images, positions * F)
            image, place = values.nonzero(as_tuple=True)
            self.codes.setdefault(layer, []).append((place.int(), values[image, place]))
            self.errors.setdefault(layer, []).append(errors[layer].unflatten(0, (n_images, -1)).cpu())
        self.n += n_images

    def _choose(self, codes: list[Tensor], errors: list[Tensor], n_images: int) -> None:
        """How many layers this pass keeps, from what the first batch takes."""
        batches = 1.0 if self._expected is None else self._expected / n_images
        chosen = 0
        for layer in self.layers:
            held = 8 * int((codes[layer] != 0).sum()) + errors[layer].numel() * errors[layer].element_size()
            self._left -= int(held * batches)
            if chosen and self._left < 0:
                break
            chosen += 1
        self.layers = range(self.first, self.first + chosen)

    def medians(self) -> list[tuple[Tensor, Tensor]]:
        """`(positions, F)` and `(positions, d)` of each layer kept."""
        return [(self._codes(self.codes[layer]), self._errors(self.errors[layer])) for layer in self.layers]

    def _codes(self, found: list[tuple[Tensor, Tensor]]) -> Tensor:
        place = torch.cat([part[0] for part in found]).long()
        value = torch.cat([part[1] for part in found])
        counts = torch.bincount(place, minlength=self.P * self.F)
        # a code that is 0 in at least half of the images and has one sign has the median 0 (or next to it)
        often = (2 * counts >= self.n).nonzero().flatten()
        out = torch.zeros(self.P * self.F, dtype=value.dtype)
        column = torch.full((self.P * self.F,), -1, dtype=torch.int64)
        column[often] = torch.arange(len(often))
        kept = column[place] >= 0
        columns, values = column[place[kept]], value[kept]
        order = columns.argsort(stable=True)
        sizes = torch.bincount(columns, minlength=len(often)).tolist()
        for at, part in zip(often.split(1), values[order].split(sizes)):
            padded = torch.cat([part, part.new_zeros(self.n - len(part))])
            out[at] = padded.median()
        return out.view(self.P, self.F)

    def _errors(self, found: list[Tensor]) -> Tensor:
        return torch.cat(found).median(0).values
