"""Named arrays that lie in one npz of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from clt_lightning.core.files import whole_file


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an npz, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Arrays:
    """Arrays by name; a class of them says what its file is called.

    Attributes:
        arrays: by name.
    """

    FILE: ClassVar[str]
    arrays: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def save(self, folder: str | Path) -> Path:
        """Writes the file into a folder."""
        path = Path(folder) / self.FILE
        write_arrays(path, self.arrays)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Self | None:
        """Reads the file of a folder; None where there is none."""
        path = Path(folder) / cls.FILE
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as file:
            return cls({name: file[name] for name in file.files})
