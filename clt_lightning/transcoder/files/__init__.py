"""Transcoders in the files of other tools, and back.

`FORMATS` is the list: how a transcoder is written, and why one cannot be. `read` recognises a folder by its files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.files import circuit_tracer, prisma, sae_lens

if TYPE_CHECKING:
    from clt_lightning.transcoder.clt import CrossLayerTranscoder


@dataclass(frozen=True)
class Format:
    """Files of another tool.

    Attributes:
        tool: its name in a sentence.
        refusal: why a transcoder cannot be written so; None if it can.
        save: writes one into a folder: `(clt, folder, metadata, dtype, repository)`.
        notes: what a user of the files must know of this transcoder.
    """

    tool: str
    refusal: Callable[[CrossLayerTranscoder], str | None]
    save: Callable[..., Path]
    notes: Callable[[CrossLayerTranscoder], list[str]]


FORMATS = {
    "circuit-tracer": Format(
        "circuit-tracer", circuit_tracer.refusal, circuit_tracer.save_circuit_tracer, circuit_tracer.notes
    ),
    "sae-lens": Format("SAELens", sae_lens.refusal, sae_lens.save_sae_lens, sae_lens.notes),
}
_READERS = (circuit_tracer.read, sae_lens.read, prisma.read)


def what_maps(clt: CrossLayerTranscoder) -> str:
    """One line: for which tools this transcoder can be exported, and why not for others."""
    told = []
    for name, form in FORMATS.items():
        reason = form.refusal(clt)
        told.append(f"{form.tool}: " + (f"no, {reason}" if reason else f"yes (export --format {name})"))
    return f"for other tools: {'; '.join(told)}"


def export(
    clt: CrossLayerTranscoder,
    folder: str | Path,
    form: str,
    metadata: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    repository: str | None = None,
) -> Path:
    """Writes a transcoder for another tool.

    Args:
        clt: the transcoder.
        folder: made if it is not there; an earlier export of the same form in it is replaced, whole.
        form: one of `FORMATS`.
        metadata: `{"clip": FrozenCLIP.describe()}`, for names.
        dtype: of the tensors; None: the transcoder's own.
        repository: `ORG/NAME` of the hub where the folder will lie, for files that name it.

    Raises:
        UserError: what the form cannot express, a folder that holds something else, or one that cannot be written.
    """
    reason = FORMATS[form].refusal(clt)
    if reason is not None:
        raise UserError(f"{FORMATS[form].tool} cannot take this transcoder: {reason}. Export with --format safetensors")
    return FORMATS[form].save(clt, folder, metadata or {}, dtype, repository)


def read(folder: Path) -> CrossLayerTranscoder | None:
    """A transcoder from another tool's folder; None where the folder holds nothing of the kind.

    Raises:
        UserError: files of a tool, but with something that has no counterpart here, or damaged.
    """
    for reader in _READERS:
        found = reader(folder)
        if found is not None:
            return found
    return None
