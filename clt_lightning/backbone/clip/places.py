"""Where a model lies: a file, a folder with open_clip's config beside the weights, or a repository of the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json
from clt_lightning.core.hub import Repository

CONFIG_NAME = "open_clip_config.json"
HUB, LOCAL = "hf-hub:", "local-dir:"
#: In the order in which a folder's or repository's weights are chosen
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_ENDINGS = (".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True)
class Place:
    """Where a model's config and weights lie.

    Attributes:
        title: what to call a model of it: the file's or folder's name, or `ORG/NAME`.
        weights: the file of weights; None: in the repository, not asked for yet.
        config_file: the JSON that describes the model; None: there is none.
        whole: whether config and weights are one thing (a folder, a repository), so that the config decides.
        repository: where the weights are fetched from.
    """

    title: str
    weights: Path | None
    config_file: Path | None = None
    whole: bool = False
    repository: Repository | None = None

    def config(self) -> dict[str, Any]:
        """What `config_file` says: `model_cfg`, `preprocess_cfg`, and here `tokenizer`; empty without such a file.

        Raises:
            UserError: it is no JSON table.
        """
        return {} if self.config_file is None else read_json(self.config_file)

    def fetch_weights(self) -> Path:
        """The file of weights, downloaded if need be.

        Raises:
            UserError: it cannot be had.
        """
        if self.weights is not None:
            return self.weights
        assert self.repository is not None
        for name in WEIGHTS:
            found = self.repository.fetch(name)
            if found is not None:
                return found
        raise UserError(f"{self.repository}: the repository holds none of the weights {', '.join(WEIGHTS[:3])}, ...")


def open_place(given: str) -> Place | None:
    """What a user means by a path, `local-dir:FOLDER` or `hf-hub:ORG/NAME[@REVISION]`; None for none of these.

    Raises:
        UserError: a folder or repository that is not there, or holds no model.
    """
    if given.startswith(HUB):
        return _repository(given.removeprefix(HUB))
    path = Path(given.removeprefix(LOCAL))
    if path.is_dir():
        if given.startswith(LOCAL) and not (path / CONFIG_NAME).is_file():
            raise UserError(f"the folder '{path}' holds no {CONFIG_NAME}, which says what model its weights are of")
        return _folder(path)
    if given.startswith(LOCAL):
        raise UserError(f"{given!r}: there is no folder '{path}'")
    return _file(path) if path.is_file() else None


def _file(path: Path) -> Place:
    for candidate in (path.with_suffix(".json"), path.parent / CONFIG_NAME):
        if candidate.is_file() and (candidate.name == CONFIG_NAME or _is_table(candidate)):
            return Place(path.stem, path, candidate)
    return Place(path.stem, path)


def _is_table(path: Path) -> bool:
    """Whether a JSON that has the weights' name can be about them; one that is damaged shall be named."""
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8-sig")), dict)
    except (OSError, ValueError):
        return True


def _folder(folder: Path) -> Place:
    title = folder.resolve().name
    if folder.resolve().parent.name == "snapshots":  # of the hub's cache: the folder's name is a commit
        title = folder.resolve().parent.parent.name.removeprefix("models--").replace("--", "/")
    config = folder / CONFIG_NAME
    if not config.is_file():
        return _folder_without_config(folder)
    return Place(title, _choose(folder), config, whole=True)


def _choose(folder: Path) -> Path:
    """The file of weights of a folder."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS and path.is_file())
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"the folder '{folder}' holds no weights (no {', '.join(WEIGHTS[:2])}, ...)")
    names = ", ".join(path.name for path in found[:5])
    raise UserError(f"the folder '{folder}' holds several files of weights ({names}): give the path of one of them")


def _folder_without_config(folder: Path) -> Place:
    snapshots = sorted((folder / "snapshots").glob("*/"))
    if snapshots:
        name = folder.name.removeprefix("models--").replace("--", "/")
        raise UserError(f"'{folder}' is the hub's cache of {name}: write {HUB}{name}, or give {snapshots[-1]}")
    other = folder / "config.json"
    if other.is_file():
        about = read_json(other)
        if str(about.get("format", "")).startswith("clt_lightning/"):
            raise UserError(f"'{folder}' holds a transcoder, not a backbone: open it with from_pretrained")
        if "model_type" in about or "architectures" in about:
            raise UserError(
                f"'{folder}' holds a model of transformers' ({about.get('model_type', 'unknown')}): open_clip's layout "
                f"is needed, weights with an {CONFIG_NAME}. OpenAI's models are open_clip's tag 'openai'"
            )
    return _file(_choose(folder))


def _repository(text: str) -> Place:
    name, _, revision = text.partition("@")
    if not name:
        raise UserError(f"'{HUB}{text}' names no repository: write {HUB}ORG/NAME")
    repository = Repository(name, revision or None)
    config = repository.fetch(CONFIG_NAME)
    if config is None:
        raise UserError(
            f"{repository}: the repository holds no {CONFIG_NAME}, so it is none of open_clip's (weights for "
            "transformers are of another layout); https://huggingface.co/models?library=open_clip lists those"
        )
    return Place(name, None, config, whole=True, repository=repository)
