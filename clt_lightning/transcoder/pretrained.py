"""config.json + model.safetensors: the form in which transcoders travel.

config.json holds SHA-256 sums of the weights and of everything else that it says itself: of weights that were damaged
or swapped on their way, no number would tell.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from clt_lightning.core import kinds
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import finite, read_text, sha256, whole_file
from clt_lightning.core.hub import Repository
from clt_lightning.transcoder import activations, packed

FORMAT = "clt_lightning/1"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
SUMS = "sha256"
M = TypeVar("M", bound=nn.Module)


def save(arguments: dict[str, Any], state: dict[str, Tensor], folder: str | Path, metadata: dict[str, Any]) -> Path:
    """Writes arguments and folded state; both files get their names when both are whole.

    Raises:
        UserError: the disk is full or the place cannot be written, or the metadata are not plain values.
    """
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu() for name, tensor in state.items()}
    tensors = {name: tensor.contiguous() for name, tensor in packed.pack(tensors).items()}
    config = plain({"format": FORMAT, **arguments, "metadata": metadata})
    with whole_file(folder / CONFIG) as config_file:
        with whole_file(folder / WEIGHTS) as weights_file:
            safetensors.torch.save_file(tensors, weights_file, {"format": FORMAT})
            text = _sealed(config, weights_file)
        config_file.write_text(text, encoding="utf-8")
    return folder


def seal(folder: str | Path) -> None:
    """Writes the sums of a folder's files as they are now, for a config.json that was changed on purpose, or is old.

    Raises:
        UserError: config.json is damaged, or a file is missing.
    """
    folder = Path(folder)
    config = _read_config(folder)
    _require_weights(folder / WEIGHTS)
    with whole_file(folder / CONFIG) as path:
        path.write_text(_sealed(config, folder / WEIGHTS), encoding="utf-8")


def load(cls: type[M], folder: Path, dtype: torch.dtype = torch.float32, *, trusted: bool = False) -> M:
    """Builds a transcoder from a folder's files, and compares both with their sums.

    Args:
        cls: the transcoder's class.
        folder: from `find`.
        dtype: of its floating-point tensors.
        trusted: whether a class that config.json names may be imported from any package.

    Raises:
        UserError: a file is missing, damaged, of another transcoder, or not ours.
    """
    config = _read_config(folder)
    _require_weights(folder / WEIGHTS)
    if not isinstance(config.get(SUMS), dict):
        raise UserError(
            f"{folder / CONFIG} has no sums of the files ('{SUMS}'): it was written by an older version, or changed. "
            "Write the folder anew (export --ckpt_path CHECKPOINT --output FOLDER), or vouch for it as it is: "
            f'python -c "from clt_lightning.transcoder import pretrained; pretrained.seal({str(folder)!r})"'
        )
    with ThreadPoolExecutor(1) as pool:  # the sum takes about as long as the rest
        weights_sum = pool.submit(sha256, folder / WEIGHTS)
        try:
            clt = build(cls, config, packed.unpack(_read_tensors(folder / WEIGHTS)), dtype, trusted=trusted)
        except UserError:
            _compare(folder, WEIGHTS, config, weights_sum.result())  # damage explains more than what it led to
            raise
        _compare(folder, WEIGHTS, config, weights_sum.result())
    _compare(folder, CONFIG, config, _config_sum(config))
    return clt


def is_ours(folder: Path) -> bool:
    """Whether a folder's config.json is of this package, in whatever version."""
    return str(content_of(folder).get("format", "")).startswith(FORMAT.partition("/")[0])


def content_of(folder: Path) -> dict[str, Any]:
    """What a folder's config.json says, whoever wrote it; empty where there is none that can be read."""
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def metadata_of_run(results: Any) -> dict[str, Any]:
    """The metadata beside a run's own transcoder/, where a run's folder or its results.json is named; else empty."""
    if not isinstance(results, str | Path):
        return {}
    folder = Path(results) if Path(results).is_dir() else Path(results).parent
    path = folder / "transcoder" / CONFIG
    return dict(_read_config(path.parent).get("metadata", {})) if path.is_file() else {}


def find(folder_or_hub_id: str | Path, **options: Any) -> Path:
    """The folder with a transcoder's files: the one that is named, or the hub's cache after a download.

    Args:
        folder_or_hub_id: a folder, or `ORG/NAME` of a Hugging Face repository, or `ORG/NAME/SUBFOLDER`.
        options: those of `core.hub.Repository`, and `subfolder`; of no use for a folder, so refused there.

    Raises:
        UserError: neither a folder nor a repository, or one without these files.
    """
    folder = Path(folder_or_hub_id)
    given = {name: value for name, value in options.items() if value not in (None, False)}
    if folder.is_dir():
        if given:
            raise UserError(
                f"{', '.join(given)}: of use for a Hugging Face repository alone, but {folder} is a folder on this disk"
            )
        return folder
    name = str(folder_or_hub_id)
    repository, inside = split_name(name)
    inside = "/".join(part for part in (inside, (options.pop("subfolder", None) or "").strip("/")) if part)
    # a path that does not exist looks like a repository with a subfolder, which a folder of that name would not be
    path_like = name.startswith((".", "/", "~")) or (name.count("/") > 1 and Path(name.split("/")[0]).exists())
    if repository is None or path_like:
        raise UserError(
            f"{name}: no such folder (and not of the form user/name[/subfolder] of a Hugging Face repository)"
        )
    place = Repository(repository, **options)
    try:
        files = {file: place.fetch(f"{inside}/{file}" if inside else file) for file in (CONFIG, WEIGHTS)}
    except UserError as error:
        raise UserError(f"{name}: no such folder, and the hub did not give it: {error}") from error
    for file, path in files.items():
        if path is None:
            where = f" in {inside}" if inside else ""
            raise UserError(f"{name}: no such folder, and the hub's repository of this name holds no {file}{where}")
    return Path(str(files[CONFIG])).parent


def split_name(name: str) -> tuple[str | None, str]:
    """`user/name/sub/folder` as repository and subfolder; None for what is no such name."""
    parts = name.split("/")
    if len(parts) < 2 or not all(parts):
        return None, ""
    return "/".join(parts[:2]), "/".join(parts[2:])


def build(
    cls: type[M], config: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype, *, trusted: bool = False
) -> M:
    """Builds the transcoder and loads its tensors strictly.

    Raises:
        UserError: config.json has keys or values that the transcoder does not take, or the tensors do not fit it.
    """
    arguments = {key: value for key, value in config.items() if key not in ("format", "metadata", SUMS)}
    parameters = inspect.signature(cls).parameters
    unknown = sorted(set(arguments) - set(parameters))
    required = {name for name, p in parameters.items() if p.default is p.empty} | {"activation"}
    missing = sorted(required - set(arguments))
    if unknown or missing:
        problems = [
            f"{what} {', '.join(names)}" for what, names in (("unknown", unknown), ("missing", missing)) if names
        ]
        raise UserError(f"{CONFIG} of the transcoder: keys {'; '.join(problems)} (known are {', '.join(parameters)})")
    try:
        arguments["activation"] = activations.from_config(arguments["activation"], trusted=trusted)
        with torch.device("meta"):  # no memory for what a damaged config asks for, no random weights for nothing
            clt = cls(**arguments).to(dtype)
    except (UserError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{CONFIG} of the transcoder: {kinds.first_line(error)}") from error
    _check_fit(clt.state_dict(), tensors)
    clt = clt.to_empty(device="cpu")
    clt.load_state_dict(tensors)
    return clt


def _check_fit(wanted: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    odd = sorted(wanted.keys() ^ tensors.keys())
    if odd:
        names = ", ".join(odd[:3]) + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
        raise UserError(f"the weights do not fit their {CONFIG}: {names} is in one of them alone")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"the weights do not fit their {CONFIG}: {name} is {tuple(tensor.shape)}, expected "
                f"{tuple(wanted[name].shape)}"
            )


def plain(content: dict[str, Any]) -> dict[str, Any]:
    """A table as JSON gives it back.

    Raises:
        UserError: a value that JSON does not know.
    """
    try:
        made: dict[str, Any] = json.loads(json.dumps(finite(content), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"metadata must be plain values (numbers, strings, lists, tables): {error}") from error
    return made


def _sealed(config: dict[str, Any], weights: Path) -> str:
    """The text of config.json, with the sums."""
    content = {key: value for key, value in config.items() if key != SUMS} | {SUMS: {WEIGHTS: sha256(weights)}}
    content[SUMS][CONFIG] = _config_sum(content)
    return json.dumps(content, indent=2) + "\n"


def _config_sum(config: dict[str, Any]) -> str:
    """SHA-256 of what config.json says, the sum itself left out; layout and line ends do not count."""
    sums = {name: value for name, value in config[SUMS].items() if name != CONFIG}
    text = json.dumps(config | {SUMS: sums}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _compare(folder: Path, name: str, config: dict[str, Any], found: str) -> None:
    told = config[SUMS].get(name)
    if told == found:
        return
    if name == CONFIG:
        raise UserError(
            f"{folder / CONFIG} was changed after it was written: its content has not the sum that it tells. Fetch or "
            "copy it again; if you changed it yourself: "
            f'python -c "from clt_lightning.transcoder import pretrained; pretrained.seal({str(folder)!r})"'
        )
    raise UserError(
        f"cannot read the transcoder in {folder}: {WEIGHTS} has not the SHA-256 sum that {CONFIG} tells "
        f"({str(told)[:12]}..., but {found[:12]}...): it is damaged, or of another run. Fetch or copy both files again"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} holds no {CONFIG}: is it a folder that save_pretrained or the end of fit wrote?")
    try:
        config = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"cannot read the transcoder in {folder}: {CONFIG} is not JSON ({error})") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: format {found!r}, this version reads {FORMAT!r}")
    return dict(config)


def _require_weights(path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"{path.parent} holds no {WEIGHTS}: is it a folder that save_pretrained or the end of fit wrote?"
        )
    kind = kinds.kind_of(path)
    if kind.name != kinds.SAFETENSORS:
        raise UserError(f"cannot read the transcoder in {path.parent}: {WEIGHTS} {kind}")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"cannot read the transcoder in {path.parent}: {WEIGHTS}: {kinds.first_line(error)}") from error
