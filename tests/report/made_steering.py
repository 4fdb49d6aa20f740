"""Made-up edits of features, saved as `steer --save` saves them, with known numbers of images named otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clt_lightning.analysis.steering import Edit, SteeringResult
from clt_lightning.report.saved_edits import PICTURES, Flips, save_edit, steering_record

#: Images that an edit makes right, that it makes wrong, and that it moves from one wrong class to another
GAINED, LOST, OTHER = 5, 30, 2
EDITS = {
    "crosses": [Edit(1, 3, "set", 2.0), Edit(3, 120, "scale", 0.0, 0)],
    "many": [Edit(layer, feature, "scale", 0.5) for layer in range(4) for feature in range(0, 20, 2)],
}


def save_made_edits(
    run: Path, keys: Sequence[str], labels: Tensor, classnames: Sequence[str], image: Callable[[str], Tensor]
) -> None:
    """Saves `EDITS`, measured on the first 60 images: all sure of a class, which is another one for some."""
    keys, labels, classes = list(keys[:60]), labels[:60], len(classnames)

    def sure_of(picked: Tensor) -> Tensor:
        chances = torch.full((len(picked), classes), 0.2 / classes, dtype=torch.float64)
        chances[torch.arange(len(picked)), picked % classes] += 0.8
        return chances

    was, now = labels.clone(), labels.clone()
    was[:GAINED] += 1
    now[GAINED : GAINED + LOST] += 2
    was[-OTHER:] += 1
    now[-OTHER:] += 2
    before, after = sure_of(was), sure_of(now)
    for name, edits in EDITS.items():
        most = PICTURES if name == "crosses" else 1
        flips = Flips(lambda made: (made * 63.75 + 127.5).clamp(0, 255).to(torch.uint8), most)
        flips({"key": keys, "label": labels, "image": torch.stack([image(key) for key in keys])}, before, after)
        found = SteeringResult(keys, labels, list(classnames), before, after)
        save_edit(run, steering_record(run, found, edits, flips, name=name, nodes=["a <set>"]))
