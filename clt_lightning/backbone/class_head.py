"""Class logits of a backbone that has no text tower: a linear head on its unit embeddings, kept in a run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import whole_file

#: Where a run keeps it
PLACE = Path("probe") / "head.safetensors"


@dataclass(frozen=True)
class ClassHead:
    """Logits `backbone.logit_scale * <unit embedding, column>`.

    Attributes:
        kind: `probe`, or `classifier` for the model's own.
        matrix: `(embed_dim, classes)` float32.
        classnames: names of its columns.
        weights_sha256: of the backbone that it was made for.
        info: what it was measured to do, plain values.
    """

    kind: str
    matrix: Tensor
    classnames: list[str]
    weights_sha256: str
    info: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Writes it into a run's folder.

        Raises:
            UserError: it cannot be written.
        """
        path = folder / PLACE
        about = {
            "kind": self.kind,
            "classnames": self.classnames,
            "weights_sha256": self.weights_sha256,
            "info": self.info,
        }
        with whole_file(path) as temporary:
            save_file(
                {"matrix": self.matrix.float().contiguous().cpu()}, temporary, {"clt_lightning": json.dumps(about)}
            )
        return path

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The head of a run's folder; None where there is none.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / PLACE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["clt_lightning"])
                matrix = file.get_tensor("matrix")
            return cls(about["kind"], matrix, list(about["classnames"]), about["weights_sha256"], about["info"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): `python -m clt_lightning probe` writes it anew") from error

    def check(self, embed_dim: int, classnames: Sequence[str], weights_sha256: str) -> Self:
        """Itself, where it is for such embeddings and classes.

        Raises:
            UserError: it was made for another backbone, or other classes.
        """
        again = "`python -m clt_lightning probe --run ...` makes one for this run"
        if self.matrix.shape != (embed_dim, len(self.classnames)) or self.weights_sha256 != weights_sha256:
            raise UserError(f"the run's {PLACE} was made for another backbone: {again}")
        if list(classnames) != self.classnames:
            raise UserError(
                f"the run's {PLACE} names {len(self.classnames)} classes, the data {len(classnames)} others: {again}"
            )
        return self


def on_unit_embeddings(weight: Tensor, bias: Tensor, norm: float, mean: Tensor, scale: float) -> Tensor:
    """A linear classifier of embeddings as they are, on unit ones: exact where all embeddings are of one length.

    Args:
        weight: `(embed_dim, classes)`; `bias`: `(classes,)`.
        norm: mean length of embeddings.
        mean: `(embed_dim,)` mean of unit embeddings, along which the bias is read.
        scale: from cosines to logits.

    Returns:
        `(embed_dim, classes)`.
    """
    along = mean / mean.square().sum().clamp(min=1e-12)
    return (norm * weight + torch.outer(along, bias)) / scale
