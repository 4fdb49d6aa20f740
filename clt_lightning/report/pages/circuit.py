"""The circuit of an image: which features made it this class, and what happens without some."""

from __future__ import annotations

import time

from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.report.choice import named, spread
from clt_lightning.report.draft import Draft
from clt_lightning.report.page import Page
from clt_lightning.report.pages.images import mistaken
from clt_lightning.report.pictures import Pictures

#: Circuits of a report, and the seconds that they may take, if no number is asked for
_USUAL, _SECONDS = 8, 120.0


class _Circuits:
    """Makes circuits as images come and writes `data/circuits/<number>.js`."""

    def __init__(self, draft: Draft, chosen: list[int]) -> None:
        self.draft, self.chosen = draft, chosen
        self.known: dict[int, list[str]] = {}
        self.began: float | None = None
        self.problem: str | None = None
        self.late = 0

    def take(self, pictures: Pictures, number: int, image: Tensor) -> None:
        self.began = time.monotonic() if self.began is None else self.began
        if self.problem is not None:
            return
        if self.draft.options.circuits is None and self.known and time.monotonic() - self.began > _SECONDS:
            self.late += 1
            return
        keys, labels = self.draft.source.images
        try:
            found = pictures.circuits(image, keys[number], labels[number])
        except UserError as error:
            self.problem = str(error)
            return
        self.draft.data(address(number), found | {"image": number})
        self.known[number] = ["; ".join(circuit["targets"]) for circuit in found["circuits"]]

    def finish(self) -> None:
        if self.problem is not None:
            self.draft.note(f"No circuits of images: {self.problem}")
        if self.late:
            self.draft.note(
                f"{len(self.known)} of {len(self.chosen)} circuits were made in {_SECONDS:.0f} seconds; "
                f"--circuits {len(self.chosen)} makes all of them."
            )
        listed = [{"image": number, "targets": names} for number, names in sorted(self.known.items())]
        self.draft.data("circuits", {"images": listed} if listed else None)


def address(number: int) -> str:
    """Where the circuits of an image are."""
    return f"circuits/{number:05d}"


def circuit_images(draft: Draft) -> list[int]:
    """Numbers of the images with a circuit: those that the user named, then mistakes and others in turn."""
    keys, labels = draft.source.images
    wanted = _USUAL if draft.options.circuits is None else draft.options.circuits
    wrong, others = mistaken(draft), spread(labels, max(wanted, 1))
    turns = [n for pair in zip(wrong, others) for n in pair]
    chosen = dict.fromkeys([*named(keys, draft.options.image_keys, "--image"), *turns, *others, *wrong])
    return list(chosen)[:wanted]


def write(draft: Draft) -> None:
    """Asks for the images."""
    draft.data("circuits", None)
    keys, _ = draft.source.images
    if not keys or not draft.options.pictures or draft.options.circuits == 0 or not draft.source.classnames:
        return
    circuits = _Circuits(draft, circuit_images(draft))
    draft.kept["circuit"] = circuits
    draft.each(lambda shown: circuits.chosen, circuits.take)


def finish(draft: Draft, pictures: Pictures) -> None:
    """Writes `circuits`: the list of images that have one."""
    if "circuit" in draft.kept:
        draft.kept["circuit"].finish()


PAGE = Page(
    name="circuit",
    title="Circuit",
    about="What made an image this class: features, errors, inputs and biases, who adds what to whom, and what happens "
    "without some.",
    source="the model, at report time, or `graph --page`",
    needs="python -m clt_lightning graph --run {run} --image KEY --page",
    under="images",
    addresses=(
        "circuit/15?pruningThreshold=0.9&pinnedIds=0_3_2,1_5_4&clickedId=1_5_4",
        "circuit/15",
        "circuit/2",
        "circuit",
    ),
    write=write,
    finish=finish,
)
