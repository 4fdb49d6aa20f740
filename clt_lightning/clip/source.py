"""From (name, pretrained) to an open_clip model: what is checked before anything is built or downloaded."""

from __future__ import annotations

import difflib
import errno
import json
import logging
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import LayerScale
from torch import nn

from clt_lightning.core.errors import UserError

DEMO_FOLDER = Path(__file__).parent / "demo"
DEMO_CHECKPOINT = DEMO_FOLDER / "open_clip_model.safetensors"
CONFIG_NAME = "open_clip_config.json"
QUICK_SUFFIX = "-quickgelu"


@dataclass(frozen=True)
class Source:
    """Where a model comes from, checked.

    Attributes:
        name: open_clip's name of the architecture (for a model with its own config: the name written there).
        pretrained: as the user gave it: tag, path, `demo` or None.
        model_cfg: open_clip's architecture config.
        tag: open_clip's pretrained tag, if it is one.
        checkpoint: file with the weights, if it is one.
        own_config: the JSON beside the checkpoint when the architecture comes from there (open_clip's
            `open_clip_config.json` format: `model_cfg`, `preprocess_cfg`, and here `tokenizer`), else empty.
    """

    name: str
    pretrained: str | None
    model_cfg: dict[str, Any]
    tag: str | None = None
    checkpoint: Path | None = None
    own_config: dict[str, Any] = field(default_factory=dict)

    @property
    def quick_gelu(self) -> bool:
        """Whether the model is built with QuickGELU, `x * sigmoid(1.702 x)`."""
        return bool(self.model_cfg.get("quick_gelu", False))


def find_source(name: str, pretrained: str | None) -> Source:
    """Check a model's name and weights against open_clip's tables, without building or downloading anything.

    Args:
        name: open_clip's name of an architecture.
        pretrained: tag | path of a checkpoint | `demo` | None.

    Raises:
        UserError: unknown name or tag, missing file, or weights that were trained with the other GELU.
    """
    if pretrained == "demo":
        return _from_own_config("demo", DEMO_CHECKPOINT)
    name = name.replace("/", "-")
    model_cfg = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    path = Path(pretrained).expanduser() if pretrained is not None else None
    is_tag = pretrained is not None and model_cfg is not None and _known_tag(name, pretrained)
    if path is not None and not is_tag and path.is_file():
        config = _config_beside(path)
        if model_cfg is None and "model_cfg" in config:
            return _from_own_config(str(pretrained), path)
        _require_name(name, model_cfg)
        assert model_cfg is not None
        told = config.get("model_cfg", config).get("quick_gelu")
        if told is not None and bool(told) != bool(model_cfg.get("quick_gelu", False)):
            raise _gelu_error(name, str(pretrained), trained_quick=bool(told))
        return Source(name, pretrained, model_cfg, checkpoint=path)
    _require_name(name, model_cfg)
    assert model_cfg is not None
    if pretrained is None:
        return Source(name, None, model_cfg)
    _check_tag(name, pretrained, quick_gelu=bool(model_cfg.get("quick_gelu", False)))
    return Source(name, pretrained, model_cfg, tag=pretrained)


def build_model(source: Source, precision: str, seed: int) -> nn.Module:
    """Build the open_clip model of a source, with its weights.

    Args:
        source: from `find_source`.
        precision: `fp32` or `bf16`.
        seed: seed of random weights, where no weights are loaded.

    Raises:
        UserError: if a tag's weights are neither on disk nor to be downloaded, or a file does not fit.
    """
    if source.tag is not None:
        _fetch(source)
    try:
        with _quiet_open_clip(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if source.own_config:
                model = _build_from_own_config(source, precision)
            else:
                weights = source.tag or (str(source.checkpoint) if source.checkpoint else None)
                model = open_clip.create_model(source.name, pretrained=weights, precision=precision)
    except (RuntimeError, AssertionError) as error:
        # load_state_dict's strict errors, or open_clip's own on a text width: the file is of another architecture
        if source.checkpoint is not None and ("loading state_dict" in str(error) or "pos_embed" in str(error)):
            raise UserError(
                f"the weights in '{source.checkpoint}' do not fit the architecture '{source.name}': "
                f"give the name that they were trained with. {_shorten(str(error))}"
            ) from error
        raise
    if precision == "bf16":
        _cast_layer_scales(model)
    return model


def _cast_layer_scales(model: nn.Module) -> None:
    # open_clip's cast forgets LayerScale: its fp32 factor would turn the bf16 stream into fp32, which the next block
    # cannot multiply with its weights
    for module in model.modules():
        if isinstance(module, LayerScale):
            module.gamma.data = module.gamma.data.to(torch.bfloat16)


def _from_own_config(pretrained: str, checkpoint: Path) -> Source:
    if not checkpoint.is_file():
        raise UserError(
            f"the weights '{checkpoint}' are missing: reinstall the package, "
            "or make them with `python -m clt_lightning.clip.demo.train`"
        )
    config = _config_beside(checkpoint)
    if "model_cfg" not in config:
        raise UserError(f"'{checkpoint.parent / CONFIG_NAME}' has no `model_cfg`: the architecture is not known")
    name = config.get("name") or (pretrained if pretrained == "demo" else checkpoint.stem)
    return Source(name, pretrained, config["model_cfg"], checkpoint=checkpoint, own_config=config)


def _build_from_own_config(source: Source, precision: str) -> nn.Module:
    cfg = dict(source.model_cfg)
    kind = open_clip.CustomTextCLIP if cfg.pop("custom_text", False) else open_clip.CLIP
    model = kind(**cfg, cast_dtype=open_clip.get_cast_dtype(precision))
    if precision == "bf16":
        open_clip.convert_weights_to_lp(model, dtype=torch.bfloat16)
    open_clip.load_checkpoint(model, str(source.checkpoint))
    preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), source.own_config.get("preprocess_cfg", {}))
    preprocess["size"] = model.visual.image_size
    open_clip.set_model_preprocess_cfg(model, preprocess)
    return model


def _config_beside(checkpoint: Path) -> dict[str, Any]:
    for candidate in (checkpoint.with_suffix(".json"), checkpoint.parent / CONFIG_NAME):
        if candidate.is_file():
            try:
                config = json.loads(candidate.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise UserError(f"'{candidate}', which lies beside the weights, is not JSON: {error}") from error
            if isinstance(config, dict):
                return config
    return {}


def _require_name(name: str, model_cfg: dict[str, Any] | None) -> None:
    if model_cfg is None:
        raise UserError(f"open_clip has no architecture '{name}'{_closest(name, open_clip.list_models())}")


def _known_tag(name: str, tag: str) -> bool:
    base = name.removesuffix(QUICK_SUFFIX)
    return open_clip.is_pretrained_cfg(name, tag) or open_clip.is_pretrained_cfg(base, tag)


def _check_tag(name: str, tag: str, *, quick_gelu: bool) -> None:
    base = name.removesuffix(QUICK_SUFFIX)
    if not _known_tag(name, tag):
        tags = open_clip.list_pretrained_tags_by_model(name) or open_clip.list_pretrained_tags_by_model(base)
        raise UserError(
            f"'{tag}' is neither a pretrained tag of '{name}' nor a file on disk{_closest(tag, tags)}; "
            "or null for random weights, or 'demo'"
        )
    # a `-quickgelu` name lists only tags trained with QuickGELU: for the others ask the plain name
    cfg = open_clip.get_pretrained_cfg(name, tag) or open_clip.get_pretrained_cfg(base, tag)
    trained_quick = bool(cfg.get("quick_gelu", False))
    if trained_quick != quick_gelu:
        raise _gelu_error(name, tag, trained_quick=trained_quick)


def _gelu_error(name: str, pretrained: str, *, trained_quick: bool) -> UserError:
    base = name.removesuffix(QUICK_SUFFIX)
    right = base + QUICK_SUFFIX if trained_quick else base
    kinds = ("QuickGELU", "GELU") if trained_quick else ("GELU", "QuickGELU")
    advice = (
        f"use the name '{right}'" if right in open_clip.list_models() else f"choose an architecture with {kinds[0]}"
    )
    return UserError(
        f"the weights '{pretrained}' were trained with {kinds[0]}, but '{name}' computes {kinds[1]}: "
        f"every activation would be wrong; {advice}"
    )


def _fetch(source: Source) -> None:
    """Have the weights of a tag on disk, or say how to get them there."""
    cfg = open_clip.get_pretrained_cfg(source.name, source.tag)
    try:
        with _quiet_open_clip():
            open_clip.download_pretrained(cfg)
    except (FileNotFoundError, ConnectionError, urllib.error.URLError, TimeoutError) as error:
        # open_clip wraps whatever went wrong into a FileNotFoundError: a full disk is not a missing network
        inner = error.__context__
        if isinstance(inner, OSError) and inner.errno in (errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.EROFS):
            raise
        raise UserError(
            f"the weights '{source.tag}' of '{source.name}' are not on disk and could not be downloaded "
            f"({_shorten(str(error))}). Connect once to fetch them, or give the path of a checkpoint file as "
            "`pretrained`, or null for random weights, or 'demo' for the model that comes with the package"
        ) from error


@contextmanager
def _quiet_open_clip() -> Iterator[None]:
    # open_clip logs to the root logger, which installs a handler there as a side effect, and warns about random
    # weights that were asked for
    root = logging.getLogger()
    handlers, level = list(root.handlers), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        root.handlers[:] = handlers


def _closest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=5, cutoff=0.4)
    return f"; close to it: {', '.join(close)}" if close else f"; known: {', '.join(known[:20])}"


def _shorten(text: str, limit: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + " ..."
