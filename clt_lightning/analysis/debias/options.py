"""What a study of debiasing measures."""

from __future__ import annotations

from dataclasses import dataclass

from clt_lightning.core.errors import UserError

#: How an arm's features are found, in words
WAYS = {
    "circuits": "circuits of the attribute's values, what is in one alone",
    "codes": "features of the circuits, by how well codes tell the attribute",
    "coactivation": "influence, and co-activation that unbiased images lack",
    "nodes": "named by hand",
}
NEEDS_GROUPS = ("circuits", "codes")
#: What is done with an arm's features, in words
EDITS = {
    "regress": "what the embedding shares with a weighted sum of their codes is taken out of it",
    "ablate": "their codes stand at their mean in the running model",
}


@dataclass(frozen=True)
class DebiasOptions:
    """What is measured.

    Attributes:
        head: `probe`, learned on the training split, or `zero_shot`.
        ways: any of `WAYS`.
        edits: any of `EDITS`.
        sizes: how many features or heads an edit may have.
        group_images: training images of each group whose relevance is looked at, and that sizes are chosen on;
            images: training images for means and influence.
        code_images: training images, and unbiased ones, whose codes are compared: with labels of groups as many of
            each.
        random: draws of random features.
        most_lost: how much of the accuracy on choice images an edit may cost, as a share.
        draws: resamples of images; seed: of all that is drawn.
        progress: say how far it is.

    Raises:
        UserError: a way or an edit that does not exist.
    """

    head: str = "probe"
    ways: tuple[str, ...] = ("circuits", "codes", "coactivation")
    edits: tuple[str, ...] = ("regress", "ablate")
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    group_images: int = 128
    images: int = 512
    code_images: int = 4000
    random: int = 3
    most_lost: float = 0.01
    draws: int = 1000
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        for what, given, known in (("way", self.ways, WAYS), ("edit", self.edits, EDITS)):
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise UserError(f"there is no {what} {unknown[0]!r}; there are: {', '.join(known)}")
