"""How a transcoder, and sparse attention, is written, shared and loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import pretrained
from clt_lightning.transcoder.card import Upload, card, read_results
from clt_lightning.transcoder.precision import float_type


class Saving(nn.Module):
    """The half of a module that deals with files and the Hugging Face Hub."""

    units: ClassVar[str] = "features"

    n_layers: int
    n_features: int

    def config(self) -> dict[str, Any]:
        """Plain arguments that build an untrained module of the same form."""
        raise NotImplementedError

    def folded_state(self) -> dict[str, Tensor]:
        """The tensors to write."""
        raise NotImplementedError

    @classmethod
    def read_folder(cls, folder: Path, dtype: torch.dtype, trust: bool) -> Self:
        """The module of a folder's files."""
        return pretrained.load(cls, folder, dtype, trusted=trust)

    @property
    def n_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters())

    def card(self, upload: Upload) -> str:
        """README.md of a repository that holds it."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, metadata: dict[str, Any] | None = None) -> Path:
        """Writes `config.json` and `model.safetensors` into a folder, scales folded in.

        Args:
            folder: made if it is not there.
            metadata: further plain entries for config.json, under `metadata`.

        Returns:
            the folder.

        Raises:
            UserError: the disk is full or the place cannot be written, or the metadata are not plain values.
        """
        return pretrained.save(self.config(), self.folded_state(), folder, metadata or {})

    def push_to_hub(
        self,
        repo_id: str,
        *,
        results: str | Path | Mapping[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        licence: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face Hub, with a card (README.md) of what was measured.

        Args:
            repo_id: `user/name`, or `user/name/sub` for a folder in it; the repository is made if it is not there.
            results: where the numbers of the card come from: a run's folder or its results.json; None: it has none.
            metadata: further plain entries for config.json; None: the ones beside the run's own transcoder/, where
                `results` names a run that has one.
            licence: of the weights, as the hub names it, e.g. `apache-2.0`; None: the card says that it is not stated.
            subfolder: of the repository, for several transcoders in one.
            revision: branch; made if it is not there.
            token: None: the one of `hf auth login`.
            private: of a repository that is made.
            commit_message: None: one that names the transcoder.

        Returns:
            the address of what was uploaded.

        Raises:
            UserError: a name that cannot be, no leave to write, no network, or no such results.
        """
        from clt_lightning.core import hub

        name, inside = pretrained.split_name(repo_id)
        if name is None:
            raise UserError(f"{repo_id!r} is no name of a repository: write user/name or user/name/subfolder")
        inside = "/".join(part for part in (inside, (subfolder or "").strip("/")) if part)
        record = read_results(results)
        if metadata is None:
            metadata = pretrained.metadata_of_run(results)
        place = f"{name}/{inside}" if inside else name
        text = self.card(Upload(place, metadata or {}, record, licence, revision))
        with tempfile.TemporaryDirectory() as made:
            folder = self.save_pretrained(made, metadata)
            (folder / "README.md").write_text(text, encoding="utf-8")
            message = commit_message or f"{type(self).__name__}, {self.n_layers} x {self.n_features} {self.units}"
            return hub.upload(folder, name, inside or None, revision, token, private, message)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        trust: bool = False,
    ) -> Self:
        """Loads what `save_pretrained` wrote, and compares it with the sums in its config.json; a transcoder also from
        a folder of circuit-tracer, SAELens or Prisma (docs/interchange.md says what maps).

        Args:
            folder_or_hub_id: a folder, or a Hugging Face repository (the only case that needs a network), or a folder
                in one: `user/name`, `user/name/sub`.
            device: where to put it.
            dtype: floating-point type of its weights, so of the computation: a `torch.dtype` or its name; None:
                float32.
            subfolder: of the repository.
            revision: of the repository: branch, tag or commit.
            token: for a private repository; None: the one of `hf auth login`.
            cache_dir: where to download to; None: the hub's own cache.
            local_files_only: take what the cache has, and download nothing.
            force_download: download also what the cache has.
            trust: whether a class of another package that config.json names (an activation) may be imported, and its
                code run. One that you have imported yourself needs no trust.

        Raises:
            UserError: a file is missing, damaged, changed, or does not fit its config; or the device or type cannot be.
        """
        folder = pretrained.find(
            folder_or_hub_id,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        found = cls.read_folder(folder, float_type(dtype), trust)
        try:
            return found.to(device).eval()
        except (RuntimeError, AssertionError) as error:  # a device that this machine or this torch lacks
            raise UserError(f"device={str(device)!r}: {error}") from error


class TranscoderSaving(Saving):
    """The same of a transcoder, which other tools write as well."""

    @classmethod
    def read_folder(cls, folder: Path, dtype: torch.dtype, trust: bool) -> Self:
        from clt_lightning.transcoder import files  # which builds transcoders

        theirs: Any = None if pretrained.is_ours(folder) else files.read(folder)
        return super().read_folder(folder, dtype, trust) if theirs is None else theirs.to(dtype)

    def card(self, upload: Upload) -> str:
        return card(self.config(), self.n_parameters, upload)
