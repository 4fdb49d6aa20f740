"""From (name, pretrained) to where a model comes from: what is checked before anything is built or downloaded."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import open_clip

from clt_lightning.backbone.clip import shapes, torchscript
from clt_lightning.backbone.clip.places import CONFIG_NAME, HUB, LOCAL, Place, open_place
from clt_lightning.core import kinds
from clt_lightning.core.errors import UserError, about, setting
from clt_lightning.core.paths import expand
from clt_lightning.core.say import say

DEMO_FOLDER = Path(__file__).parent / "demo"
DEMO_CHECKPOINT = DEMO_FOLDER / "open_clip_model.safetensors"
QUICK_SUFFIX = "-quickgelu"
#: What `pretrained` is where nobody says anything
DEFAULT_PRETRAINED = "openai"


@dataclass(frozen=True)
class Source:
    """Where a model comes from, checked.

    Attributes:
        name: open_clip's name of the architecture (for a model with its own config: the name written there).
        pretrained: as a run records it: tag, path, folder, `hf-hub:ORG/NAME`, `local-dir:FOLDER`, `demo` or None.
        model_cfg: open_clip's architecture config.
        tag: open_clip's pretrained tag, if it is one.
        place: where the weights are, if they are no tag's.
        config: the JSON beside the weights (open_clip's `open_clip_config.json` format: `model_cfg`, `preprocess_cfg`,
            and here `tokenizer`), else empty.
        given_by: the setting that names the weights: `pretrained`, or `name` where that is an address.
        is_own: whether the architecture comes with the weights; else it is open_clip's of this name.
        archived: whether the weights are a TorchScript archive, whose shapes and code tell the architecture.
    """

    name: str
    pretrained: str | None
    model_cfg: dict[str, Any]
    tag: str | None = None
    place: Place | None = None
    config: dict[str, Any] = field(default_factory=dict)
    given_by: str = "pretrained"
    is_own: bool = False
    archived: bool = False

    @property
    def checkpoint(self) -> Path | None:
        """The file with the weights, if it is on this disk."""
        return None if self.place is None else self.place.weights

    @property
    def quick_gelu(self) -> bool:
        """Whether the model is built with QuickGELU, `x * sigmoid(1.702 x)`."""
        return bool(self.model_cfg.get("quick_gelu", False))


def find_source(name: str, pretrained: str | None) -> Source:
    """Check a model's name and weights against open_clip's tables; of a repository the config is fetched, no weights.

    Args:
        name: open_clip's name of an architecture; or `hf-hub:ORG/NAME` or `local-dir:FOLDER`, which bring one along.
        pretrained: tag | path of a file | folder | `hf-hub:ORG/NAME` | `local-dir:FOLDER` | `demo` | None.

    Raises:
        UserError: unknown name or tag; a file, folder or repository that is not there or holds no model; or weights
            that were trained with the other GELU.
    """
    if pretrained == "demo":
        return _from_config("demo", _demo())
    if name.startswith((HUB, LOCAL)):
        if pretrained not in (None, DEFAULT_PRETRAINED, name):
            raise UserError(
                f"{setting('name')}={name!r} brings its own weights: leave {setting('pretrained')}={pretrained!r} out"
            )
        return replace(_from_address(name, None, name, "name"), given_by="name")
    name = name.replace("/", "-")
    model_cfg = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if pretrained is None:
        return Source(name, None, _required(name, model_cfg))
    if model_cfg is not None and _known_tag(name, pretrained):
        _check_tag(name, pretrained, quick_gelu=bool(model_cfg.get("quick_gelu", False)))
        return Source(name, pretrained, model_cfg, tag=pretrained)
    return _from_address(name, model_cfg, pretrained, "pretrained")


def _from_address(name: str, model_cfg: dict[str, Any] | None, given: str, given_by: str) -> Source:
    """A file, folder or repository."""
    schema = next((prefix for prefix in (HUB, LOCAL) if given.startswith(prefix)), "")
    pretrained = schema + expand(given.removeprefix(schema), setting(given_by))
    with about(given_by):
        place = open_place(pretrained)
        if place is not None and place.whole:
            source = _from_config(pretrained, place)
            if model_cfg is not None and model_cfg != source.model_cfg:
                say(f"{pretrained} brings its own architecture: {setting('name')}={name!r} is not used")
            return source
    if place is None:
        raise _no_such_weights(name, _required(name, model_cfg), pretrained)
    return _from_file(name, model_cfg, pretrained, place)


def _demo() -> Place:
    if not DEMO_CHECKPOINT.is_file():
        raise UserError(
            f"the weights '{DEMO_CHECKPOINT}' are missing: reinstall the package, "
            "or make them with `python -m clt_lightning.backbone.clip.demo.train`"
        )
    return Place("demo", DEMO_CHECKPOINT, DEMO_FOLDER / CONFIG_NAME, whole=True)


def _from_config(pretrained: str, place: Place) -> Source:
    """A model that is what the config beside its weights says."""
    config = place.config()
    if "model_cfg" not in config:
        raise UserError(f"'{place.config_file}' has no `model_cfg`: the architecture is not known")
    name = config.get("name")
    return Source(
        name if isinstance(name, str) else place.title,
        pretrained,
        config["model_cfg"],
        place=place,
        config=config,
        is_own=True,
    )


def _from_file(name: str, model_cfg: dict[str, Any] | None, pretrained: str, place: Place) -> Source:
    """A file of weights for the architecture `name`, or for the one it brings along if open_clip has no such name."""
    config = place.config()
    if model_cfg is None and "model_cfg" in config:
        return _from_config(pretrained, place)
    told = config.get("model_cfg", config).get("quick_gelu")
    assert place.weights is not None
    archived = kinds.kind_of(place.weights).name == kinds.TORCHSCRIPT
    if archived:
        quick, found = _look_into(place.weights)
        told = quick if told is None else told
        if model_cfg is None and found is not None:
            found["quick_gelu"] = bool(told)
            known = [n for n in shapes.names_of(found) if n.endswith(QUICK_SUFFIX) == bool(told)]
            name, is_own = (known[0], False) if known else (place.title, True)
            return Source(name, pretrained, found, place=place, is_own=is_own, archived=True)
    source = Source(name, pretrained, _required(name, model_cfg), place=place, config=config, archived=archived)
    if told is not None:
        check_gelu(source, bool(told))
    return source


def _look_into(archive: Path) -> tuple[bool, dict[str, Any] | None]:
    """Whether a TorchScript archive computes QuickGELU, and its architecture."""
    try:
        shaped = torchscript.read_tensors(archive, meta=True)
        return torchscript.computes_quick_gelu(archive), shapes.architecture(shaped)
    except torchscript.DamagedArchive as error:
        raise UserError(
            f"{setting('pretrained')}: '{archive}' is a TorchScript archive that cannot be read: {error}. "
            "Fetch or copy it again"
        ) from error


def check_gelu(source: Source, trained_quick: bool) -> None:
    """Raise a UserError where weights were trained with the GELU that the architecture does not compute."""
    if trained_quick == source.quick_gelu:
        return
    base = source.name.removesuffix(QUICK_SUFFIX)
    right = base + QUICK_SUFFIX if trained_quick else base
    trained, computed = ("QuickGELU", "GELU") if trained_quick else ("GELU", "QuickGELU")
    advice = f"use the name '{right}'" if right in open_clip.list_models() else f"choose an architecture with {trained}"
    raise UserError(
        f"the weights '{source.pretrained}' were trained with {trained}, but '{source.name}' computes {computed}: "
        f"every activation would be wrong; {advice}"
    )


def _required(name: str, model_cfg: dict[str, Any] | None) -> dict[str, Any]:
    if model_cfg is None:
        raise UserError(
            f"{setting('name')}: open_clip has no architecture '{name}'{_closest(name, open_clip.list_models())}"
        )
    return model_cfg


def _known_tag(name: str, tag: str) -> bool:
    base = name.removesuffix(QUICK_SUFFIX)
    known: bool = open_clip.is_pretrained_cfg(name, tag) or open_clip.is_pretrained_cfg(base, tag)
    return known


def _no_such_weights(name: str, model_cfg: dict[str, Any], pretrained: str) -> UserError:
    said = f"{setting('pretrained')}: '{pretrained}'"
    if "://" in pretrained:
        return UserError(f"{said} is an address: download the file, and give its path")
    base = name.removesuffix(QUICK_SUFFIX)
    tags = open_clip.list_pretrained_tags_by_model(name) or open_clip.list_pretrained_tags_by_model(base)
    hub = f", or {HUB}{pretrained} for a repository of the hub" if pretrained.count("/") == 1 else ""
    return UserError(
        f"{said} is neither a pretrained tag of '{name}' nor a file or folder on disk{_closest(pretrained, tags)}{hub}"
        "; or null for random weights, or 'demo'"
    )


def _check_tag(name: str, tag: str, *, quick_gelu: bool) -> None:
    # a `-quickgelu` name lists only tags trained with QuickGELU: for the others ask the plain name
    base = name.removesuffix(QUICK_SUFFIX)
    cfg = open_clip.get_pretrained_cfg(name, tag) or open_clip.get_pretrained_cfg(base, tag)
    check_gelu(Source(name, tag, {"quick_gelu": quick_gelu}), bool(cfg.get("quick_gelu", False)))


def _closest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=5, cutoff=0.4)
    return f"; close to it: {', '.join(close)}" if close else f"; known: {', '.join(known[:20])}"
