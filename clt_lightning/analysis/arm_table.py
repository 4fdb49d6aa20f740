"""The arms of a split: one row per image, with the right class's rank and the KL from the original in every arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clt_lightning.analysis.arms import Arm, ArmRunner, Known, sampled
from clt_lightning.analysis.statistics import Measured
from clt_lightning.analysis.suite import Analysis, Batch, Subject
from clt_lightning.analysis.table import NOT_RUN, ImageTable
from clt_lightning.metrics import divergences, ranks_of


class Arms(Analysis):
    """Runs variants of the model on the split's images, each from its first change on.

    Args:
        runner: runs them.
        arms: which; the original first.
        share: the share of the images on which sampled arms are run.
    """

    name = "arms"

    def __init__(self, runner: ArmRunner, arms: Sequence[Arm], share: float = 1.0) -> None:
        self.runner, self.arms, self.share = runner, list(arms), share
        self.needs = runner.needs(arms)

    def begin(self, subject: Subject) -> None:
        self._subject = subject
        self._table, self._captions = ImageTable(), ImageTable()

    def update(self, batch: Batch) -> None:
        subject, data = self._subject, batch.data
        columns: dict[str, Tensor | np.ndarray] = {"labels": batch.labels}
        multi_hot = "multi_hot" in data and subject.head is not None
        if multi_hot:
            columns["multi_hot"] = data["multi_hot"]
        columns |= self._run(batch, multi_hot, "captions" in data)
        self._table.add(batch.keys, columns)
        if "captions" in data:
            names = [f"{key}\t{i:04d}" for key, texts in zip(batch.keys, data["captions"]) for i in range(len(texts))]
            if names:
                texts = [text for texts in data["captions"] for text in texts]
                self._captions.add(names, {"embeddings": subject.clip.encode_text(texts)})

    def _run(self, batch: Batch, keep_cosines: bool, keep_embeddings: bool) -> dict[str, np.ndarray]:
        subject = self._subject
        if subject.head is None and not keep_embeddings:
            return {}
        everyone = torch.ones(batch.n_images, dtype=torch.bool, device=batch.seen.embeddings.device)
        some = sampled(batch.keys, self.share).to(everyone.device)
        original = None if subject.head is None else subject.cosines(batch.seen.embeddings)
        found: dict[str, list[Tensor]] = {}
        known = Known(batch.seen, batch.codes, batch.y_hat)
        for arm, embeddings in zip(self.arms, self.runner.all_embeddings(self.arms, known, some)):
            here = some if arm.sampled else everyone
            row: dict[str, Tensor] = {}
            # recall and average precision depend on which images there are: of arms that are run on all
            if keep_embeddings and not arm.sampled:
                row["embeddings"] = embeddings.float()
            if original is not None:
                cosines = subject.cosines(embeddings)
                kl = divergences(original[here], cosines, subject.clip.logit_scale)
                row["rank"] = _placed(ranks_of(cosines, batch.labels[here]), here, NOT_RUN)
                row["kl"] = _placed(kl, here, float("nan"))
                row["predicted"] = _placed(cosines.argmax(1), here, NOT_RUN)
                if keep_cosines and not arm.sampled:
                    row["cosines"] = cosines
            for name, value in row.items():
                found.setdefault(name, []).append(value)
        return {name: torch.stack([row.cpu() for row in rows], 1).numpy() for name, rows in found.items()}

    def result(self) -> Measured:
        """The rows of all processes' images."""
        keys, columns = self._table.gathered()
        return Measured(self.arms, list(self._subject.classnames), keys, columns, self._captions.gathered())


def _placed(values: Tensor, here: Tensor, nothing: float) -> Tensor:
    """Values of some images among all, on the CPU; the others get `nothing`."""
    whole = torch.full((len(here),), nothing, dtype=values.dtype)
    whole[here.cpu()] = values.cpu()
    return whole
