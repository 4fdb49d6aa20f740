"""A finished run, opened: backbone, transcoder and data as it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, UInt8
from lightning import LightningDataModule
from torch import Tensor

from clt_lightning.backbone.class_head import ClassHead
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.clip.images import to_pixels
from clt_lightning.backbone.make import make_backbone
from clt_lightning.core.classes import load_class
from clt_lightning.core.config_file import ConfigFile, read_config
from clt_lightning.core.errors import UserError
from clt_lightning.core.paths import expand
from clt_lightning.data.sets.modules import WebImages
from clt_lightning.interventions.replacement import check_attention_fit, check_fit
from clt_lightning.runs.folder import find_run
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention, load_attention


@dataclass
class Run:
    """What a run's folder names.

    Attributes:
        folder: `runs/<name>/version_<n>`.
        clip: the frozen backbone.
        transcoder: the trained transcoder, in evaluation mode.
        datamodule: the data, with the backbone's transform; not set up.
        config: config.yaml as plain tables.
        attention: the sparse attention, or the autoencoder of attention, that was trained beside it, in evaluation
            mode; None where there is none.
    """

    folder: Path
    clip: FrozenCLIP
    transcoder: CrossLayerTranscoder
    datamodule: Any
    config: dict[str, Any]
    attention: AnyAttention | None = None

    @cached_property
    def head(self) -> Float[Tensor, "embed_dim classes"] | None:
        """`(embed_dim, classes)`: what makes logits of the data's classes; None where nothing does.

        The zero-shot head, where the backbone has a text tower and the data name their classes; without a text tower
        the head that `python -m clt_lightning probe` has put into the run (a linear probe, or the model's own).
        """
        self.datamodule.setup("test")
        names, templates = self.datamodule.classnames, self.datamodule.templates
        return self.clip.head_for(names, templates) if self.clip.names_classes(names, templates) else None

    def require_head(self, what: str) -> Float[Tensor, "embed_dim classes"]:
        """`head`, which there must be.

        Args:
            what: what it is needed for, such as `nothing to compare`: the end of "so there is ...".

        Raises:
            UserError: there is none; the message says how to have one.
        """
        if self.head is not None:
            return self.head
        if not self.datamodule.classnames:
            raise UserError(f"--run {self.folder}: its data have no class names, so there is {what}")
        if self.clip.has_text:
            raise UserError(f"--run {self.folder}: its data have no prompt templates, so there is {what}")
        raise UserError(
            f"--run {self.folder}: its backbone has no text tower, so there is {what}: "
            f"`python -m clt_lightning probe --run {self.folder}` learns class logits from labels"
        )

    def batches(self, split: str = "test", limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Batches of a split, every sample once; `limit` takes that many, evenly spaced."""
        self.datamodule.setup("test")
        yield from self.datamodule.eval_dataloader(split, limit=limit)

    def count(self, split: str = "test", limit: int | None = None) -> int | None:
        """Images that `batches` gives; None where the data do not say.

        Raises:
            UserError: there is no such split.
        """
        self.datamodule.setup("test")
        plan = getattr(self.datamodule.eval_dataloader(split, limit=limit), "plan", None)
        return None if plan is None else int(plan.used)

    def samples(self, keys: Sequence[str], split: str = "test") -> dict[str, tuple[Float[Tensor, "3 size size"], int]]:
        """Some images of a split by key, preprocessed `(3, size, size)`, with labels (-1 for none); reads it once.

        Raises:
            UserError: a key that is not in the split.
        """
        wanted, found = set(keys), {}
        for batch in self.batches(split):
            for index, key in enumerate(batch["key"]):
                if key in wanted:
                    label = int(batch["label"][index]) if "label" in batch else -1
                    found[key] = batch["image"][index].clone(), label
            if len(found) == len(wanted):
                break
        missing = sorted(wanted - set(found))
        if missing:
            raise UserError(
                f"split {split!r} has no sample {missing[0]!r} ({len(missing)} of {len(wanted)} are missing)"
            )
        return {key: found[key] for key in keys}

    def images(self, keys: Sequence[str], split: str = "test") -> dict[str, Float[Tensor, "3 size size"]]:
        """As `samples`, the images alone."""
        return {key: image for key, (image, _) in self.samples(keys, split).items()}

    def pixels(self, image: Float[Tensor, "3 size size"]) -> UInt8[Tensor, "3 size size"]:
        """A preprocessed image back as `(3, size, size)` uint8, for showing."""
        return torch.from_numpy(to_pixels(image, self.clip.mean, self.clip.std)).permute(2, 0, 1)


def open_run(
    folder: str | Path,
    device: torch.device | str = "cpu",
    *,
    data_root: str | Path | None = None,
    allow_pipe: bool = False,
    trust_config: bool = False,
) -> Run:
    """Open a finished run.

    Its config.yaml may come from anybody: only data sets and backbones of this package (or classes that are loaded
    already) are made from it, and it cannot allow what the caller does not.

    Args:
        folder: `runs/<name>/version_<n>`, with `config.yaml` and `transcoder/`; or `runs/<name>`, which is its newest
            finished version.
        device: where backbone and transcoder go.
        data_root: where the data are, if not where the config says.
        allow_pipe: whether addresses of the data that run a shell command may do so.
        trust_config: whether the config may name a data set or a backbone, and config.json an activation, of another
            package, whose code is then run.

    Raises:
        UserError: a part is missing, the data are not where they were, or the config names what it may not.
    """
    path = find_run(folder).path
    if not (path / "config.yaml").is_file():
        raise UserError(f"--run {path}: holds no config.yaml; give a run's folder, such as runs/quickstart/version_0")
    if not (path / "transcoder").is_dir():
        raise UserError(f"--run {path}: holds no transcoder/ folder; did fit finish?")
    file = read_config(path / "config.yaml")
    model, data = _section(file, "model"), _section(file, "data")
    datamodule = _datamodule(file, data, data_root, allow_pipe, trust_config)
    try:
        made = make_backbone(model.get("backbone"), trusted=trust_config).to(device)
    except UserError as error:
        raise UserError(f"{file.where(('model', 'backbone'))}: {error}") from error
    clip = cast(FrozenCLIP, made)  # other backbones have the same methods; those of texts refuse
    transcoder = CrossLayerTranscoder.from_pretrained(path / "transcoder", device=device, trust=trust_config)
    units = path / "attention"
    attention = None
    if units.is_dir():
        attention = load_attention(units, device, trust=trust_config)
    try:
        check_fit(clip, transcoder)
        if attention is not None:
            check_attention_fit(clip, attention)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    datamodule.transform = clip.preprocess
    if not clip.has_text:
        clip.use_head(ClassHead.load(path))
    return Run(path, clip, transcoder, datamodule, file.content, attention)


def open_data(path: str | Path, *, allow_pipe: bool = False, trust_config: bool = False) -> Any:
    """The data module that a config names, without a transform; not set up.

    Args:
        path: a YAML file with a table `data`, or a run's folder.
        allow_pipe: as of `open_run`.
        trust_config: as of `open_run`.

    Raises:
        UserError: no such file, no table `data`, or what is in it is no data set.
    """
    path = Path(path)
    if path.is_dir():
        path = find_run(path).path / "config.yaml"
    if not path.is_file():
        raise UserError(f"there is no config {path}")
    file = read_config(path)
    data = file.content.get("data")
    if not isinstance(data, dict):
        raise UserError(f"{path}: it names no data: it needs a table data with class_path and init_args")
    return _datamodule(file, data, None, allow_pipe, trust_config, require=False)


def _section(file: ConfigFile, key: str) -> dict[str, Any]:
    found = file.content.get(key)
    if not isinstance(found, dict):
        raise UserError(f"{file.where((key,))}: a run's config has a table {key}; is this one of fit?")
    return found


def _datamodule(
    file: ConfigFile,
    data: dict[str, Any],
    root: str | Path | None,
    allow_pipe: bool,
    trusted: bool,
    require: bool = True,
) -> WebImages:
    where = f"{file.where(('data', 'class_path'))}: data.class_path"
    cls = load_class(data.get("class_path", ""), LightningDataModule, where, "data set", trusted=trusted)
    arguments: dict[str, Any] = {}
    for key in ("init_args", "dict_kwargs"):
        given = data.get(key) or {}
        if not isinstance(given, dict):
            raise UserError(f"{file.where(('data', key))}: data.{key} is no table of arguments")
        arguments |= given
    if issubclass(cls, WebImages):
        arguments["allow_pipe"] = allow_pipe  # whoever runs the command allows it, never the config
    if root is not None and "sets" in arguments:
        raise UserError(
            "--data.init_args.root: the run reads several sets, each with a root of its own "
            f"({file.where(('data', 'init_args', 'sets'))}): put them back where they were"
        )
    if root is not None:
        arguments["root"] = expand(root, "--data.init_args.root")
    try:
        made: Any = cls(**arguments)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise UserError(f"{file.where(('data', 'init_args'))}: data: {error}") from error
    if require and root is None and isinstance(made, WebImages):
        made.require_root()
    result: WebImages = made
    return result
