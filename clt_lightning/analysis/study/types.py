"""What a study of an image holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from clt_lightning.core.errors import UserError


@dataclass(frozen=True)
class StudyOptions:
    """How much is computed of each image.

    Attributes:
        classes: classes whose feature effects are computed, most likely first; the image's own is among them.
        shown: features of either sign that the ranking of any two of these classes is complete to.
        deciding: features that are really ablated, one at a time and together: those that speak most for the answer.
        full: ablate all that are shown, with integrated gradients beside, and split up the replaced model's logits too.
    """

    classes: int = 5
    shown: int = 20
    deciding: int = 5
    full: bool = False

    @classmethod
    def in_full(cls) -> StudyOptions:
        """For the few images that are looked at closely."""
        return cls(classes=64, full=True)


@dataclass(frozen=True)
class LayerCodes:
    """A layer's active features on one image.

    Attributes:
        features: `(n,)` int64.
        maps: `(n, P)` their codes, exactly `encode`'s.
        effects: `(questions, n, P)` what each code adds to the answer of each question, by one gradient.
    """

    features: Tensor
    maps: Tensor
    effects: Tensor


@dataclass(frozen=True)
class Ablation:
    """What the live model says without what some features write.

    Attributes:
        question: which question the features were chosen by.
        rows: which features, as rows of `Study.layer` and the others.
        predicted: what they should add to the answer: with integrated gradients in a study in full, else by one.
        logits: `(classes,)` float64, of all classes.
    """

    question: int
    rows: list[int]
    predicted: float
    logits: Tensor


@dataclass(frozen=True)
class Study:
    """One image. K classes are asked of the C that there are; U features are active.

    Attributes:
        logits: `(C,)` float64, of the untouched model; empty without class names, as is all that follows but `codes`.
        replaced: `(C,)` with all MLPs replaced, cascaded.
        classes: `(K,)` the classes asked, most likely first.
        questions: pairs of classes (more, less): the predicted class and the runner-up; the predicted and the image's
            own class, where that is neither.
        terms: `(rows, C)` float64, rows as in `term_rows`; None where the embedding is not read from [CLS].
        replaced_terms: the same of the replaced model; only of studies in full.
        layer: `(U,)` int64.
        feature: `(U,)` int64.
        total: `(U, K + 1)` float64, what each feature adds to the logits of the classes asked and to the mean of all
            classes' (last column), to first order: code x gradient . decoder rows, summed over positions and layers.
        direct: `(U, K + 1)` float64, what of it goes straight to the read-out; None as for `terms`.
        integrated: `(questions, U)` float64, with gradients along the path from the code to 0; NaN where not computed.
        kept: `(U,)` bool: among the largest of some question about the classes asked.
        ablations: what really happens; those of one feature, and for each question those of all deciding ones together.
        codes: for each layer its active features.
        positions: P.
    """

    logits: Tensor
    replaced: Tensor
    classes: Tensor
    questions: list[tuple[int, int]]
    terms: Tensor | None = field(repr=False)
    replaced_terms: Tensor | None = field(repr=False)
    layer: Tensor = field(repr=False)
    feature: Tensor = field(repr=False)
    total: Tensor = field(repr=False)
    direct: Tensor | None = field(repr=False)
    integrated: Tensor = field(repr=False)
    kept: Tensor = field(repr=False)
    ablations: list[Ablation] = field(repr=False)
    codes: list[LayerCodes] = field(repr=False)
    positions: int

    def effect(self, more: int, less: int | None = None) -> Tensor:
        """`(U,)` what each feature adds to the logit of a class, or to that minus another's, by one gradient.

        Raises:
            UserError: a class that was not asked.
        """
        return self.total[:, self._column(more)] - (0 if less is None else self.total[:, self._column(less)])

    def _column(self, which: int) -> int:
        found = (self.classes == which).nonzero()
        if not len(found):
            raise UserError(f"class {which} was not asked of this image; there are {self.classes.tolist()}")
        return int(found[0, 0])
