"""A planted cue that goes with the class where a model is trained, and tells nothing where it is tested."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clt_lightning.core.errors import UserError
from clt_lightning.data.worlds.renders import CLASSNAMES, COLOURS, CUES, SHAPES, Render, render

_KEY = "data.init_args.spurious"


@dataclass(frozen=True)
class Spurious:
    """Renders in which a cue goes with the class: in `strength` of the training and validation images, in half of the
    test images.

    There are four groups, `2 * kind + cue`, where `kind` is the half of the classes that a class belongs to. The cue's
    value is the kind's in that share of each kind's images, to the image; in `test` all four groups are of one size.

    Args:
        cue: `texture` (the object's: stripes or dots), `background` (sand or water) or `corner` (nothing, or a white
            mark in the top left corner).
        strength: Share of the images in which the cue goes with the class, .5 (it tells nothing) to 1 (always).
        classes: Two colours, shapes or class names that are to be told apart, as `[circle, square]`; then labels are 0
            and 1. null: all 64 classes, of which the shapes of the first half go with the cue's first value.
    """

    cue: str = "background"
    strength: float = 0.95
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.cue not in CUES:
            raise UserError(f"{_KEY}.cue must be one of {', '.join(CUES)}, but is {self.cue!r}")
        if (
            isinstance(self.strength, bool)
            or not isinstance(self.strength, int | float)
            or not 0.5 <= self.strength <= 1
        ):
            raise UserError(f"{_KEY}.strength must be a number from 0.5 to 1, but is {self.strength!r}")
        if self.classes is not None and (isinstance(self.classes, str) or len(self.classes) != 2):
            raise UserError(f"{_KEY}.classes must be two colours, shapes or class names, but is {self.classes!r}")
        first, second = self.labels
        both = sorted(set(first) & set(second))
        if both:
            raise UserError(
                f"{_KEY}.classes: {CLASSNAMES[both[0]]!r} is in both of {self.classes}: name two that differ"
            )

    @cached_property
    def labels(self) -> tuple[Sequence[int], Sequence[int]]:
        """The world's labels of each kind."""
        if self.classes is None:
            half = len(CLASSNAMES) // 2
            return range(half), range(half, 2 * half)
        found = [
            [i for i, name in enumerate(CLASSNAMES) if word == name or word in name.split()] for word in self.classes
        ]
        for word, labels in zip(self.classes, found):
            if not labels:
                known = ", ".join([*COLOURS, *SHAPES])
                raise UserError(
                    f"{_KEY}.classes: no class is called {word!r}; there are: {known}, and {CLASSNAMES[0]!r} …"
                )
        return found[0], found[1]

    @property
    def classnames(self) -> list[str]:
        """Class names by label."""
        return CLASSNAMES if self.classes is None else list(self.classes)

    @property
    def groupnames(self) -> list[str]:
        """Names of the groups, by number."""
        kinds = self.classes or [f"{SHAPES[0]} to {SHAPES[3]}", f"{SHAPES[4]} to {SHAPES[7]}"]
        return [f"{kind} {value}" for kind in kinds for value in CUES[self.cue]]

    def group(self, split: str, index: int) -> int:
        """The group of picture `index`, `2 * kind + cue`."""
        kind, number = index % 2, index // 2
        strength = 0.5 if split == "test" else self.strength
        # of a kind's first n pictures, floor(n * share) go against it
        share = 1 - strength + 1e-12
        against = math.floor((number + 1) * share) > math.floor(number * share)
        return 2 * kind + (kind ^ against)

    def render(
        self, split: str, seed: int, index: int, *, size: int, group: int | None = None
    ) -> tuple[Render, int, int]:
        """Draws picture `index` of a split.

        Args:
            split: `train`, `val` or `test`.
            seed, index, size: as in `renders.render`.
            group: draws it as of another group of the same kind: the same picture but for the cue.

        Returns:
            the picture, its label (by `classnames`) and its group.
        """
        group = self.group(split, index) if group is None else group
        kind, value = divmod(group, 2)
        labels = self.labels[kind]
        label = labels[int(np.random.default_rng([seed, index, 2]).integers(len(labels)))]
        made = render(seed, index, size=size, label=label, cue=(self.cue, value))
        return made, label if self.classes is None else kind, group
