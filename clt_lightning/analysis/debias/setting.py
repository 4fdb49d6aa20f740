"""What all arms share: the data as embeddings, the biased predictor, and samples of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from clt_lightning.analysis.debias.groups import Groups
from clt_lightning.analysis.debias.options import DebiasOptions
from clt_lightning.analysis.debias.predictor import Edit, Embedded, Head, Reservoir, embed, no_groups
from clt_lightning.analysis.held_out import refuse_shared
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError


class Setting:
    """Reads every split once.

    Attributes:
        train, val, test: embeddings with labels and groups.
        groups: how groups are numbered.
        sample: training images; balanced: as many of each group.
        head: the biased predictor; before: whether it is right on each test image.
        unbiased_train: of data in which the cue does not go with the class; None without such data.
        unbiased_val, unbiased_head: of the same; None also where these have other classes.
        collateral: by name, a zero-shot head and whether it is right on each image.
        notes: what was left out, and why.

    Args:
        clip: the backbone.
        data: the data module.
        unbiased: another, or None.
        collateral: others by name.
        options: of the study.

    Raises:
        UserError: no labels, no groups, one class, or an empty group.
    """

    def __init__(
        self, clip: Backbone, data: Any, unbiased: Any, collateral: Mapping[str, Any], options: DebiasOptions
    ) -> None:
        self.clip, self.data, self.unbiased, self.o = clip, data, unbiased, options
        self.collateral_sets = dict(collateral)
        self.notes: list[str] = []
        for module in (data, unbiased, *self.collateral_sets.values()):
            if module is not None:
                module.transform = clip.preprocess
        self._read()
        self._read_unbiased()
        self._read_collateral()

    def embedded(
        self, split: str, edit: Edit | None = None, keep: Callable[[dict[str, Any]], None] | None = None, of: Any = None
    ) -> Embedded:
        """A split's embeddings, of `data` or another module, under an edit or without."""
        what = split if edit is None and self.o.progress else ""
        loader = (of or self.data).eval_dataloader(split)
        plan = getattr(loader, "plan", None)
        return embed(self.clip, loader, edit, what, None if plan is None else plan.total, keep)

    def note(self, text: str) -> None:
        """Says what was left out, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _read(self) -> None:
        o, data = self.o, self.data
        data.setup("test")
        names = data.classnames
        if names is not None and len(names) < 2:
            raise UserError("the data have one class: there is nothing that a cue could go with")
        refuse_shared(data)
        for split in ("train", "val", "test"):  # before the long passes
            first = next(iter(data.eval_dataloader(split)), {"group": None})
            if "group" not in first:
                raise no_groups(split)
        by_group, anyone = Reservoir(o.group_images, o.seed), Reservoir(o.images, o.seed + 1)

        def keep(batch: dict[str, Any]) -> None:
            told = batch.get("group")
            groups = [-1] * len(batch["label"]) if told is None else told.tolist()
            for image, label, group in zip(batch["image"], batch["label"].tolist(), groups):
                by_group.add(image, label, group, group)
                anyone.add(image, label, group, 0)

        self.train = self.embedded("train", keep=keep)
        self.groups = Groups.of(self.train.labels, self.train.need_groups("train"), data.groupnames)
        self.val, self.test = self.embedded("val"), self.embedded("test")
        for name, part in (("val", self.val), ("test", self.test)):
            self.groups.check(part.need_groups(name), name)
        self.balanced, self.sample = by_group.sample(), anyone.sample()
        self.n_classes = len(names) if names else int(self.train.labels.max()) + 1
        self.head = self._head(names)
        self.before = self.head.right(self.test.embeddings, self.test.labels)
        self.base_logits = self.head(embed(self.clip, self.sample.batches()).embeddings).mean(0)

    def _head(self, names: Sequence[str] | None) -> Head:
        if self.o.head == "probe":
            return Head.probe(self.train, self.val, self.n_classes, "linear probe of the training split")
        if self.o.head != "zero_shot":
            raise UserError(f"the head is probe or zero_shot, got {self.o.head!r}")
        if not names or not self.clip.names_classes(names, self.data.templates):
            raise UserError("zero-shot prompts need class names, templates and a text tower: take --head probe")
        return Head.zero_shot(self.clip.head_for(names, self.data.templates), self.clip.logit_scale)

    def _read_unbiased(self) -> None:
        self.unbiased_head: Head | None = None
        self.unbiased_train: Embedded | None = None
        self.unbiased_val: Embedded | None = None
        if self.unbiased is None:
            return
        self.unbiased.setup("test")
        train = self.unbiased_train = self.embedded("train", of=self.unbiased)
        if self.unbiased.classnames == self.data.classnames:
            self.unbiased_val = self.embedded("val", of=self.unbiased)
            self.unbiased_head = Head.probe(train, self.unbiased_val, self.n_classes, "linear probe of unbiased data")
        else:
            self.note(
                "the unbiased data have other classes: co-activation is with the class's most influential feature, and "
                "there is no predictor of unbiased data"
            )

    def _read_collateral(self) -> None:
        self.collateral: dict[str, tuple[Head, np.ndarray]] = {}
        for name, module in self.collateral_sets.items():
            module.setup("test")
            if not self.clip.names_classes(module.classnames, module.templates):
                raise UserError(f"collateral {name}: it has no class names and templates, so there is no accuracy")
            head = Head.zero_shot(self.clip.head_for(module.classnames, module.templates), self.clip.logit_scale)
            seen = self.embedded("test", of=module)
            self.collateral[name] = head, head.right(seen.embeddings, seen.labels)

    def counts(self) -> tuple[int, ...]:
        """Test images of each group."""
        return tuple(torch.bincount(self.test.need_groups("test"), minlength=self.groups.n).tolist())
