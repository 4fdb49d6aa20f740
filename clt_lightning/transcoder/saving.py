"""How a transcoder is written, shared and loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import pretrained
from clt_lightning.transcoder.precision import float_type

if TYPE_CHECKING:
    from clt_lightning.transcoder.clt import CrossLayerTranscoder


class Saving(nn.Module):
    """The half of a transcoder that deals with files and the Hugging Face Hub."""

    n_layers: int
    n_features: int

    def config(self) -> dict[str, Any]:
        """Plain arguments that build an untrained transcoder of the same form."""
        raise NotImplementedError

    def folded_state(self) -> dict[str, Tensor]:
        """The tensors to write."""
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
        from clt_lightning.transcoder import card

        name, inside = pretrained.split_name(repo_id)
        if name is None:
            raise UserError(f"{repo_id!r} is no name of a repository: write user/name or user/name/subfolder")
        inside = "/".join(part for part in (inside, (subfolder or "").strip("/")) if part)
        record = card.read_results(results)
        if metadata is None:
            metadata = pretrained.metadata_of_run(results)
        place = f"{name}/{inside}" if inside else name
        parameters = sum(p.numel() for p in self.parameters())
        text = card.card(self.config(), parameters, place, metadata, record, licence, revision)
        with tempfile.TemporaryDirectory() as made:
            folder = self.save_pretrained(made, metadata)
            (folder / "README.md").write_text(text, encoding="utf-8")
            message = commit_message or f"{type(self).__name__}, {self.n_layers} x {self.n_features} features"
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
    ) -> CrossLayerTranscoder:
        """Loads what `save_pretrained` wrote, and compares it with the sums in its config.json; or a folder of
        circuit-tracer, SAELens or Prisma (docs/interchange.md says what maps).

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
        from clt_lightning.transcoder import files  # which builds transcoders

        folder = pretrained.find(
            folder_or_hub_id,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        theirs = None if pretrained.is_ours(folder) else files.read(folder)
        kind = float_type(dtype)
        clt: Any = pretrained.load(cls, folder, kind, trusted=trust) if theirs is None else theirs.to(kind)
        try:
            placed: CrossLayerTranscoder = clt.to(device).eval()
            return placed
        except (RuntimeError, AssertionError) as error:  # a device that this machine or this torch lacks
            raise UserError(f"device={str(device)!r}: {error}") from error
