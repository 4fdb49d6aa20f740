"""A part of a run's folder that is replaced whole."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from clt_lightning.core.files import whole_folder


class RunPart:
    """What lies in a folder of its own in a run. Subclasses say how it is called and write its files."""

    folder_name: ClassVar[str]

    def save(self, run: str | Path) -> Path:
        """Write `<run>/<folder_name>/`, whole or not at all."""
        folder = Path(run) / self.folder_name
        with whole_folder(folder) as temporary:
            self._write(temporary)
        return folder

    def write(self, folder: Path) -> None:
        """Write the files into a folder that is not there yet."""
        folder.mkdir()
        self._write(folder)

    def _write(self, folder: Path) -> None:
        raise NotImplementedError
