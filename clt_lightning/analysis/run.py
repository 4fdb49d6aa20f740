"""A finished run, opened: backbone, transcoder and data as it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from clt_lightning.clip import FrozenCLIP
from clt_lightning.clip.images import to_pixels
from clt_lightning.core.errors import UserError, within
from clt_lightning.runs.folder import find_run
from clt_lightning.transcoder import CrossLayerTranscoder


@dataclass
class Run:
    """What a run's folder names.

    Attributes:
        folder: `runs/<name>/version_<n>`.
        clip: the frozen backbone.
        transcoder: the trained transcoder, in evaluation mode.
        datamodule: the data, with the backbone's transform; not set up.
        config: config.yaml as plain tables.
    """

    folder: Path
    clip: FrozenCLIP
    transcoder: CrossLayerTranscoder
    datamodule: Any
    config: dict[str, Any]

    @cached_property
    def head(self) -> Tensor | None:
        """`(embed_dim, classes)` zero-shot head of the data's classes; None without class names."""
        self.datamodule.setup("test")
        names, templates = self.datamodule.classnames, self.datamodule.templates
        return self.clip.zero_shot_head(names, templates) if names and templates else None

    def batches(self, split: str = "test", limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Batches of a split, every sample once; `limit` takes that many, evenly spaced."""
        self.datamodule.setup("test")
        yield from self.datamodule.eval_dataloader(split, limit=limit)

    def samples(self, keys: Sequence[str], split: str = "test") -> dict[str, tuple[Tensor, int]]:
        """Some images of a split by key, preprocessed `(3, size, size)`, with labels (-1 for none); reads it once.

        Raises:
            UserError: a key that is not in the split.
        """
        wanted, found = set(keys), {}
        for batch in self.batches(split):
            for index, key in enumerate(batch["key"]):
                if key in wanted:
                    found[key] = batch["image"][index].clone(), int(batch["label"][index])
            if len(found) == len(wanted):
                break
        missing = sorted(wanted - set(found))
        if missing:
            raise UserError(
                f"split {split!r} has no sample {missing[0]!r} ({len(missing)} of {len(wanted)} are missing)"
            )
        return {key: found[key] for key in keys}

    def images(self, keys: Sequence[str], split: str = "test") -> dict[str, Tensor]:
        """As `samples`, the images alone."""
        return {key: image for key, (image, _) in self.samples(keys, split).items()}

    def pixels(self, image: Tensor) -> Tensor:
        """A preprocessed image back as `(3, size, size)` uint8, for showing."""
        return torch.from_numpy(to_pixels(image, self.clip.mean, self.clip.std)).permute(2, 0, 1)


def open_run(folder: str | Path, device: torch.device | str = "cpu") -> Run:
    """Open a finished run.

    Args:
        folder: `runs/<name>/version_<n>`, with `config.yaml` and `transcoder/`; or `runs/<name>`, which is its newest
            finished version.
        device: where backbone and transcoder go.

    Raises:
        UserError: a part is missing.
    """
    path = find_run(folder).path
    config_file = path / "config.yaml"
    if not config_file.is_file():
        raise UserError(f"--run {path}: holds no config.yaml; give a run's folder, such as runs/quickstart/version_0")
    if not (path / "transcoder").is_dir():
        raise UserError(f"--run {path}: holds no transcoder/ folder; did fit finish?")
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    with within("model.clip"):
        clip = FrozenCLIP(**config["model"]["clip"], seed=config["model"].get("seed", 0)).to(device)
    transcoder = CrossLayerTranscoder.from_pretrained(path / "transcoder", device=device)
    if (transcoder.n_layers, transcoder.d_model) != (clip.n_layers, clip.d_model):
        raise UserError(
            f"{path}: the transcoder has {transcoder.n_layers} layers of width {transcoder.d_model}, the backbone "
            f"{clip.n_layers} of {clip.d_model}"
        )
    return Run(path, clip, transcoder, _datamodule(config["data"], clip), config)


def _datamodule(config: dict[str, Any], clip: FrozenCLIP) -> Any:
    import importlib

    from clt_lightning.data import modules

    name = config["class_path"]
    module, _, cls = name.rpartition(".")
    holder = importlib.import_module(module) if module else modules
    made = getattr(holder, cls)(**(config.get("init_args") or {}), **(config.get("dict_kwargs") or {}))
    made.transform = clip.preprocess
    return made
