"""Class names, prompt templates and the like of a set: from its folder, a file, a list, or the set itself."""

from __future__ import annotations

import os
from typing import ClassVar

from clt_lightning.core.errors import UserError
from clt_lightning.data.tars.texts import beside, read_entries, read_lines

DATASET_TYPES = ("multilabel", "retrieval", "classification")


class Names:
    """The part of a set that knows how its classes are called."""

    default_classnames: ClassVar[str | None] = None
    default_templates: ClassVar[str | None] = None

    root: str | None
    classnames: list[str] | None
    templates: list[str] | None
    groupnames: list[str] | None
    dataset_type: str | None
    _asked_classnames: str | list[str] | None
    _asked_templates: str | list[str] | None
    _names_read: bool

    def check_root(self) -> None:
        """Cheap check before anything large is loaded."""
        raise NotImplementedError

    @property
    def n_classes(self) -> int | None:
        """Number of class names, or None."""
        return None if self.classnames is None else len(self.classnames)

    def _read_names(self) -> None:
        if self._names_read:
            return
        self.check_root()
        kind = self._from_root("dataset_type.txt", gaps=True)
        self.dataset_type = kind[0] if kind else None
        if self.dataset_type not in (None, *DATASET_TYPES):
            where = beside(self.root or "", "dataset_type.txt")
            raise UserError(f"{where} holds {self.dataset_type!r}, but must be one of {', '.join(DATASET_TYPES)}")
        self.classnames = self._names("classnames", self._asked_classnames, "classnames.txt", self.default_classnames)
        self.templates = self._names(
            "templates", self._asked_templates, "zeroshot_classification_templates.txt", self.default_templates
        )
        self.groupnames = self._from_root("groupnames.txt")
        self._names_read = True

    def _names(self, key: str, asked: str | list[str] | None, file: str, default: str | None) -> list[str] | None:
        """Class names or templates; a blank line among names would shift all that follow, among templates it may be."""
        templates, where = key == "templates", asked if isinstance(asked, str) else f"data.init_args.{key}"
        entries: list[tuple[int, str]] | None
        if isinstance(asked, str):
            entries = read_entries(asked, gaps=templates)
            if entries is None:
                raise UserError(f"data.init_args.{key}: there is no file {asked!r}")
        elif asked is not None:
            if not asked:
                raise UserError(f"data.init_args.{key} is an empty list")
            entries = list(enumerate(asked, 1))
        else:
            where = beside(self.root or "", file)
            entries = None if self.root is None else read_entries(where, gaps=templates)
            if entries is None and default is not None:
                from clt_lightning.data.lists import lines

                entries = list(enumerate(lines(default), 1))
        for line, template in entries or [] if templates else []:
            if "{c}" not in template and "{}" not in template:
                raise UserError(
                    f"{where}, line {line}: template {template!r} has no place for the class: write {{c}} where its "
                    "name belongs"
                )
        return None if entries is None else [entry for _, entry in entries]

    def _from_root(self, file: str, *, gaps: bool = False) -> list[str] | None:
        return None if self.root is None else read_lines(beside(self.root, file), gaps=gaps)

    def _names_from(self) -> str:
        asked = self._asked_classnames
        if asked is not None:
            return asked if isinstance(asked, str) else "data.init_args.classnames"
        in_root = self.root is not None and os.path.isfile(os.path.join(self.root, "classnames.txt"))
        return f"{self.root}/classnames.txt" if in_root or not self.default_classnames else self.default_classnames
