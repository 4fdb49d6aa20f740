"""From a checked source to an open_clip model with its weights."""

from __future__ import annotations

import copy
import importlib.util
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import LayerNormFp32, LayerScale
from torch import Tensor, nn

from clt_lightning.backbone.clip import shapes
from clt_lightning.backbone.clip.places import CONFIG_NAME, WEIGHTS, Place
from clt_lightning.backbone.clip.source import Source, check_gelu
from clt_lightning.backbone.clip.weights import Weights, read_weights
from clt_lightning.core import hub
from clt_lightning.core.errors import UserError, about, setting
from clt_lightning.core.files import disk_reason
from clt_lightning.core.hub import Repository
from clt_lightning.core.kinds import first_line, megabytes
from clt_lightning.core.say import doubt, say

#: Keys whose text towers are of the package transformers
_HF_TOWER = "hf_model_name"


def build_model(source: Source, precision: str, seed: int) -> nn.Module:
    """Build the open_clip model of a source, with its weights.

    Args:
        source: from `find_source`.
        precision: `fp32`, `bf16` or `fp64`.
        seed: seed of random weights, where no weights are loaded.

    Raises:
        UserError: weights that are neither on disk nor to be downloaded, or a file that holds no weights, damaged ones,
            or those of another architecture.
    """
    if _HF_TOWER in source.model_cfg.get("text_cfg", {}) and importlib.util.find_spec("transformers") is None:
        raise UserError(
            f"{setting('name')}: '{source.name}' has a text tower of the package transformers: pip install transformers"
        )
    if precision == "fp64":
        return build_model(source, "fp32", seed).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (
            _with_open_clips_weights(source, precision) if source.place is None else _with_weights(source, precision)
        )
    if precision == "bf16":
        _cast_layer_scales(model)
    return model


def _with_open_clips_weights(source: Source, precision: str) -> nn.Module:
    """A model with the weights of a tag, or with random ones."""
    cached = source.tag is not None and _fetch(source)
    with _quiet_open_clip(), hub.offline(cached):
        model: nn.Module = open_clip.create_model(
            source.name, pretrained=source.tag, precision=precision, pretrained_text=False
        )
    return model


def _with_weights(source: Source, precision: str) -> nn.Module:
    """A model with the weights of a file, a folder or a repository: all of them, each where it belongs."""
    assert source.place is not None
    weights = _read(source, source.place)
    with torch.device("meta"):  # what does not fit is known before any memory is taken
        skeleton = _construct(source, precision)
    with about(source.given_by):
        state = _converted(weights, skeleton)
        _check_fit(state, skeleton, weights, source)
    for name, tensor in weights.state.items():
        if name in state and name.endswith("positional_embedding") and len(tensor) != len(state[name]):
            doubt(
                f"{name} of the weights is for {len(tensor)} positions, the architecture has {len(state[name])}: it "
                "was interpolated, and the model is not the one that was trained. Name the weights' own architecture "
                "to have that one"
            )
    model = _construct(source, precision)
    model.load_state_dict(state)
    return model


def _read(source: Source, place: Place) -> Weights:
    with about(source.given_by):
        weights = read_weights(place.fetch_weights())
    if weights.quick_gelu is not None:
        check_gelu(source, weights.quick_gelu)
    return weights


def _construct(source: Source, precision: str) -> nn.Module:
    """The architecture, with random weights and the preprocessing that its config names."""
    cfg = copy.deepcopy(source.model_cfg)
    try:
        custom = cfg.pop("custom_text", False)
        if _HF_TOWER in cfg["text_cfg"]:
            custom, cfg["text_cfg"]["hf_model_pretrained"] = True, False
        kind = (CoCa if "multimodal_cfg" in cfg else open_clip.CustomTextCLIP) if custom else open_clip.CLIP
        with _quiet_open_clip():
            model = kind(**cfg, cast_dtype=open_clip.get_cast_dtype(precision))
        if precision == "bf16" and "timm_model_name" in cfg["vision_cfg"]:
            _cast_with_timm(model)
        elif precision == "bf16":
            open_clip.convert_weights_to_lp(model, dtype=torch.bfloat16)
        preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), source.config.get("preprocess_cfg", {}))
        preprocess["size"] = model.visual.image_size
        _check_preprocess(preprocess)
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        where = None if source.place is None else source.place.config_file
        raise UserError(
            f"'{where or source.name}' describes no model that open_clip {open_clip.__version__} can build: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    open_clip.set_model_preprocess_cfg(model, preprocess)
    result: nn.Module = model
    return result


def _check_preprocess(cfg: Mapping[str, Any]) -> None:
    for key in ("mean", "std"):
        values = cfg[key]
        if not isinstance(values, Sequence) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
            raise ValueError(f"preprocess_cfg.{key} must be three numbers, got {values!r}")
    if min(cfg["std"]) <= 0:
        raise ValueError(f"preprocess_cfg.std must be positive, got {cfg['std']!r}")
    for key, known in (
        ("interpolation", ("bicubic", "bilinear", "random")),
        ("resize_mode", ("shortest", "longest", "squash")),
    ):
        if cfg[key] not in known:
            raise ValueError(f"preprocess_cfg.{key} must be one of {', '.join(known)}, got {cfg[key]!r}")


def _converted(weights: Weights, model: Any) -> dict[str, Tensor]:
    """The tensors, small differences between versions of open_clip's layout evened out, as its own loader does."""
    state = weights.state
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    wanted = model.state_dict()
    state = dict(state)
    for name in ("logit_scale", "logit_bias"):
        if name in state and name in wanted and state[name].numel() == wanted[name].numel():
            state[name] = state[name].reshape(wanted[name].shape)
    if "logit_bias" in wanted and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros(wanted["logit_bias"].shape)
    # buffers that a model makes by itself; TorchScript and older versions write them down
    for name in {name for name, _ in model.named_buffers()} - set(wanted):
        state.pop(name, None)
    state.pop("text.transformer.embeddings.position_ids", None)
    if all(
        name in wanted and tensor.shape[-1:] == wanted[name].shape[-1:]
        for name, tensor in state.items()
        if name.endswith("positional_embedding")
    ):
        try:
            resize_pos_embed(state, model)
            resize_text_pos_embed(state, model)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"the weights in '{weights.path}' have positional embeddings that cannot be brought to the "
                f"architecture's size: {first_line(error)}"
            ) from error
    return state


def _check_fit(state: Mapping[str, Tensor], model: nn.Module, weights: Weights, source: Source) -> None:
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    unknown = [key for key in state if key not in wanted]
    shaped = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    problems = [f"{what} {_some(keys)}" for what, keys in (("it lacks", missing), ("it has also", unknown)) if keys]
    if shaped:
        key = shaped[0]
        other = f" (and {len(shaped) - 1} more differ)" if len(shaped) > 1 else ""
        problems.insert(0, f"{key} is {tuple(state[key].shape)}, expected {tuple(wanted[key].shape)}{other}")
    if problems:
        raise UserError(
            f"the weights in '{weights.path}' do not fit the architecture '{source.name}': {'; '.join(problems)}. "
            f"{_whose(weights.state, source)}"
        )
    for key, tensor in state.items():
        if not tensor.is_floating_point() and wanted[key].is_floating_point():
            raise UserError(
                f"the weights in '{weights.path}' are quantised ({key} is {tensor.dtype}): give floating-point ones"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"the weights in '{weights.path}' are not finite: {key} holds NaN or infinity")


def _whose(state: Mapping[str, Tensor], source: Source) -> str:
    """What to do about weights of another architecture."""
    found = shapes.architecture(state)
    if found is None:
        return "Give the name that they were trained with"
    names = shapes.names_of(found)
    if names:
        return f"Give the name that they were trained with: {' or '.join(names[:4])}"
    advice = f"write an {CONFIG_NAME} beside them that says so"
    if not source.is_own and source.archived:
        advice = f"take any {setting('name')} that open_clip does not know, and the archive's own is built"
    return f"The file has {shapes.in_words(found)}: {advice}"


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:2]) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")


def _cast_with_timm(model: nn.Module) -> None:
    # as open_clip does with such towers: everything, but for its own LayerNorms
    model.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, LayerNormFp32):
            module.float()


def _cast_layer_scales(model: nn.Module) -> None:
    # open_clip's cast forgets LayerScale: its fp32 factor would turn the bf16 stream into fp32, which the next block
    # cannot multiply with its weights
    for module in model.modules():
        if isinstance(module, LayerScale):
            module.gamma.data = module.gamma.data.to(torch.bfloat16)


def _fetch(source: Source) -> bool:
    """Have the weights of a tag on disk, or say how to get them there.

    Returns:
        Whether the hub was asked for nothing, since it cannot be reached and its cache has the weights.
    """
    cfg = open_clip.get_pretrained_cfg(source.name, source.tag)
    said = f"{setting('pretrained')}: the weights '{source.tag}' of '{source.name}'"
    try:
        cached = _announce(source, cfg)
        with _quiet_open_clip(), hub.offline(cached):
            open_clip.download_pretrained(cfg)
    except (FileNotFoundError, ConnectionError, urllib.error.URLError, TimeoutError) as error:
        # open_clip wraps whatever went wrong into a FileNotFoundError: a full disk is not a missing network
        inner = error.__context__
        if inner is not None and disk_reason(inner):
            raise UserError(f"{said} cannot be written to the cache of downloads: {disk_reason(inner)}") from error
        raise UserError(
            f"{said} are not on disk and could not be downloaded ({first_line(error, 300)}). Connect once to fetch "
            "them, or give the path of a checkpoint file or folder as `pretrained`, or null for random weights, or "
            "'demo' for the model that comes with the package"
        ) from error
    except RuntimeError as error:  # open_clip's word for a checksum that is not the published one
        raise UserError(f"{said}: {first_line(error, 300)}. Remove the file from the cache, and try again") from error
    return cached


def _announce(source: Source, cfg: Mapping[str, Any]) -> bool:
    """Says that a tag's weights will be downloaded; whether they are in the cache of a hub that cannot be reached."""
    if cfg.get("hf_hub"):
        name, _, filename = str(cfg["hf_hub"]).rpartition("/")
        repository = Repository(name)
        files = [f"{filename.rsplit('.', 1)[0]}.safetensors", filename] if filename else list(WEIGHTS[:3])
        for file in files:
            found = repository.announce(file)
            if found == "unreachable":
                return any(repository.is_cached(file) for file in files)
            if found != "refused":
                break
    elif cfg.get("url"):
        _announce_address(str(cfg["url"]), f"the weights '{source.tag}' of '{source.name}'")
    return False


def _announce_address(url: str, what: str) -> None:
    target = Path("~/.cache/clip").expanduser() / Path(url).name  # open_clip's place for them
    if target.exists():
        return
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
    except (OSError, ValueError):
        return  # the download meets it as well, and names it
    told = f" ({megabytes(size)})" if size else ""
    say(f"downloading {what}{told} from {url.split('/')[2]} to {target} ...")


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
