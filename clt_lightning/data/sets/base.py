"""`WebImages`: batches out of any folder of WebDataset tars, and the base of all sets."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from clt_lightning.core import seeds
from clt_lightning.core.errors import UserError
from clt_lightning.data.feed.decode import Augment
from clt_lightning.data.feed.place import find_local_place
from clt_lightning.data.feed.seen import Transform
from clt_lightning.data.feed.splits import Split, check_labels, open_split
from clt_lightning.data.sets.loaders import Loaders
from clt_lightning.data.tars.layout import SplitFiles, expand, find_split
from clt_lightning.data.tars.limits import MAX_PIXELS, PILLOW_PIXELS
from clt_lightning.data.tars.verify import verify as verify_shards

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


class WebImages(Loaders, pl.LightningDataModule):
    """Images from any WebDataset tars: a folder in the public CLIP_benchmark layout, or patterns for each split.

    Validation reads `val` and, where there is none, `test`, with a warning; testing the other way round. Every rank and
    worker gets its own samples; the loaders' places are saved in checkpoints, and a resumed run goes on with the very
    next batch.

    Args:
        root: Folder with `train/0.tar …`, `test/0.tar …` and, if there, `classnames.txt`,
            `zeroshot_classification_templates.txt`, `dataset_type.txt`; or an http(s) address of one.
        train: Patterns of the training tars in place of `<root>/train`: braces (`{0000..0099}.tar`), globs, folders,
            http(s) addresses.
        val: Patterns of the validation tars.
        test: Patterns of the test tars.
        batch_size: Training images per step on each rank.
        eval_batch_size: Images a batch in validation, test and prediction; null: as `batch_size`.
        num_workers: Worker processes that read and decode, on each rank; 0 works in the main process.
        shuffle: Raw samples in each worker's shuffle buffer (they stay compressed); 0 or 1 leaves the order of the
            reshuffled blocks.
        seed: Seed of the order and of the augmentation; the order differs from epoch to epoch. null: that of
            `seed_everything`.
        samples_per_epoch: Length of a training epoch over all ranks, rounded down to whole steps; null: the whole
            split. Needed for remote tars that come without counts.
        val_samples: Validate on this many samples only, evenly spaced over the split; null: all.
        shard_counts: Samples of each tar by split, for remote tars without `index.json`: `{test: [2500, 2500]}`.
        classnames: List of class names, or a file with one a line; null: `<root>/classnames.txt`, if there.
        templates: List of prompt templates with `{c}` in the class's place, or a file with one a line; null:
            `<root>/zeroshot_classification_templates.txt`, if there.
        on_error: What to do with a bad sample (undecodable image, missing or wrong label, cut tar): `raise` stops and
            names it; `skip` leaves it out, counts it and says so at the end of each epoch. Training then takes another
            sample in its place, so that the epoch keeps its length; evaluation gets shorter.
        allow_pipe: Whether addresses that run a shell command on this machine (`pipe:…`, `s3://…`) are allowed.
        augment: `none`, `flip` (half of the training images mirrored) or `crop` (random parts of 50 to 100 % of the
            area, and `flip`).
        prefetch: Batches that each worker makes ahead.
        start_method: How workers start: `fork`, `spawn` or `forkserver`; null: Python's default.
        verify: Compare the tars' SHA-256 with `shards.json` before they are read (each process of a machine takes its
            share).
        max_pixels: Largest image that is decoded, width x height; a larger one is a bad sample.

    Attributes:
        transform: CLIP's own preprocessing, PIL image to `(3, H, W)` float32; must be set before loaders are built.
        rank, world_size: which part of the data is this process's; None: asked of the trainer, then torch.distributed.
        classnames: class names after `setup`, or None.
        templates: prompt templates after `setup`, or None.
        groupnames: names of the groups after `setup`, from `<root>/groupnames.txt`, or None.
        dataset_type: `multilabel`, `retrieval` or None, after `setup`.
    """

    set_name: ClassVar[str] = "webimages"
    shard_hint: ClassVar[str] = ""

    def __init__(
        self,
        root: str | Path | None = None,
        train: str | Path | list[str | Path] | None = None,
        val: str | Path | list[str | Path] | None = None,
        test: str | Path | list[str | Path] | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 4,
        shuffle: int = 1000,
        seed: int | None = None,
        samples_per_epoch: int | None = None,
        val_samples: int | None = None,
        shard_counts: dict[str, list[int]] | None = None,
        classnames: str | Path | list[str] | None = None,
        templates: str | Path | list[str] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        allow_pipe: bool = False,
        augment: Augment = "none",
        prefetch: int = 2,
        start_method: Literal["fork", "spawn", "forkserver"] | None = None,
        verify: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("shuffle", shuffle, 0),
            ("samples_per_epoch", samples_per_epoch, 1),
            ("val_samples", val_samples, 1),
            ("prefetch", prefetch, 1),
            ("max_pixels", max_pixels, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"data.init_args.{name} must be {least} or more, but is {value}")
        for name, choice, allowed in (
            ("on_error", on_error, ("raise", "skip")),
            ("augment", augment, ("none", "flip", "crop")),
        ):
            if choice not in allowed:
                raise UserError(f"data.init_args.{name} must be one of {', '.join(allowed)}, but is {choice!r}")
        if max_pixels > PILLOW_PIXELS:
            raise UserError(f"data.init_args.max_pixels must be {PILLOW_PIXELS} or less, but is {max_pixels}")
        if root is None and train is None and val is None and test is None:
            raise UserError(
                "data.init_args.root is not set: give the folder of the tars, or patterns (train, val, test)"
            )
        self.root = None if root is None else str(root)
        self.patterns = {"train": _text(train), "val": _text(val), "test": _text(test)}
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.shuffle = shuffle
        self.seed = seeds.resolve(seed)
        self.samples_per_epoch = samples_per_epoch
        self.val_samples = val_samples
        self.shard_counts = shard_counts or {}
        self.on_error = on_error
        self.allow_pipe = allow_pipe
        self.augment = augment
        self.prefetch = prefetch
        self.start_method = start_method
        self.verify = verify
        self.max_pixels = max_pixels

        self.transform: Transform | None = None
        self.rank: int | None = None
        self.world_size: int | None = None
        self.classnames: list[str] | None = None
        self.templates: list[str] | None = None
        self.groupnames: list[str] | None = None
        self.dataset_type: str | None = None
        self._asked_classnames = str(classnames) if isinstance(classnames, Path) else classnames
        self._asked_templates = str(templates) if isinstance(templates, Path) else templates
        self._splits: dict[str, Split | None] = {}
        self._names_read = False

    # -- what there is ------------------------------------------------------------------------------------------

    @property
    def hint(self) -> str:
        """What makes this set's tars, for error messages."""
        return self.shard_hint.format(root=self.root)

    def check_root(self) -> None:
        """Cheap check before anything large is loaded.

        Raises:
            UserError: the folder is not there; the message says which command makes it.
        """
        if self.root is not None and "://" not in self.root and not os.path.isdir(self.root):
            raise UserError(f"data folder {self.root!r} does not exist.{' ' + self.hint if self.hint else ''}")

    def require_root(self) -> None:
        """For data that a finished run was made with: nothing is made anew in the place of what is gone.

        Raises:
            UserError: the folder is not there any more; the message says how to name another.
        """
        if self.root is not None and "://" not in self.root and not os.path.isdir(self.root):
            raise UserError(
                f"the run's data are not in {self.root} any more: say where they are with --data.init_args.root=FOLDER"
            )

    def setup(self, stage: str | None = None) -> None:
        """Finds, indexes and checks the splits that the stage reads, and reads class names and templates.

        Args:
            stage: `fit`, `validate`, `test`, `predict`; None: all splits.

        Raises:
            UserError: a folder or split is missing, a tar is damaged, or labels and class names do not fit.
        """
        self._read_names()
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        for name in wanted.get(stage or "", SPLITS):
            if self.split(name) is None:
                if stage is not None and not (stage == "fit" and name == "val"):
                    raise self._no_split(name)
                log.info("%s: there is no split to use as %r", self.set_name, name)

    def split(self, name: str) -> Split | None:
        """The split `train`, `val` or `test` (or what stands in for it); None where there is none."""
        if name not in SPLITS:
            raise UserError(f"there is no split {name!r}: use one of {', '.join(SPLITS)}")
        self._read_names()
        if name not in self._splits:
            files = self._files(name)
            if files is not None:
                self._say_stand_in(files)
            split = None if files is None else self._open(files)
            if split is not None and self.on_error == "raise" and self._selection() is None:
                check_labels(split.shards, self.n_classes, self._names_from())
            self._splits[name] = split
        return self._splits[name]

    def describe(self) -> dict[str, Any]:
        """What a run's record says of its data: plain values only."""
        self._read_names()
        names = None if self.classnames is None else "\n".join(self.classnames)
        return {
            "set": self.set_name,
            "root": self.root,
            "patterns": {k: v for k, v in self.patterns.items() if v is not None},
            "splits": {name: split.describe() for name, split in self._splits.items() if split is not None},
            "dataset_type": self.dataset_type,
            "class_list": None if names is None else self._names_from(),
            "n_classes": self.n_classes,
            "classnames_sha256": None if names is None else hashlib.sha256(names.encode()).hexdigest(),
            "templates": self.templates,
            "groupnames": self.groupnames,
            "seed": self.seed,
            "on_error": self.on_error,
            "augment": self.augment,
        }

    def _files(self, name: str) -> SplitFiles | None:
        stand_in = {"val": "test", "test": "val"}.get(name)
        for candidate in (name, stand_in):
            patterns = self.patterns.get(candidate or "")
            if patterns is not None:
                files = expand(patterns, candidate or name, allow_pipe=self.allow_pipe, hint=self.hint)
                return SplitFiles(name, candidate or name, files.shards)
            if candidate == name and self.root is not None and not (stand_in and self.patterns[stand_in] is not None):
                return find_split(self.root, name, hint=self.hint)
        return None

    def _say_stand_in(self, files: SplitFiles) -> None:
        """Validation chooses the best checkpoint: on the test split, it spoils the test's numbers."""
        first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
        if files.asked == files.found or "test" not in (files.asked, files.found) or not first:
            return
        where = self.root if self.root is not None else "the patterns"
        if files.asked == "val":
            consequence = (
                "the best checkpoint is chosen on the test split, so its test numbers flatter. Hold a part of the "
                "training images out as val: `shard` does (--val-fraction), or name some of the tars with "
                "data.init_args.train and data.init_args.val"
            )
        else:
            consequence = (
                "where the best checkpoint was chosen by validation, it was chosen on these images, so its test "
                "numbers flatter. Name other tars with data.init_args.test"
            )
        log.warning(
            "%s: %s has no split %r, and %r is read in its place: %s",
            self.set_name,
            where,
            files.asked,
            files.found,
            consequence,
        )

    def _open(self, files: SplitFiles) -> Split:
        if self.verify:
            verify_shards(files.shards, *find_local_place(self.trainer))
        return open_split(
            files,
            dataset_type=self.dataset_type,
            counts=self.shard_counts.get(files.asked, self.shard_counts.get(files.found)),
            on_error=self.on_error,
            allow_pipe=self.allow_pipe,
            selection=self._selection(),
        )


def _text(patterns: str | Path | list[str | Path] | None) -> str | list[str] | None:
    """Patterns as text."""
    return [str(p) for p in patterns] if isinstance(patterns, list) else None if patterns is None else str(patterns)
