"""`plan`: what a config costs a step, on paper, and how to divide it over GPUs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clt_lightning.core.config_file import read_config
from clt_lightning.core.errors import UserError
from clt_lightning.core.paths import expand
from clt_lightning.core.people import count as people_count
from clt_lightning.core.people import duration, size
from clt_lightning.core.terminal import line_width


def _bytes(text: str) -> float:
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)B?(?:/s)?\s*", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes: write 80GB, 141GB, 2.8TB")
    return float(match[1]) * {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[match[2].upper()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `plan`."""
    parser.add_argument(
        "--config", action="append", default=[], type=Path, help="a config of fit; repeatable, later files win"
    )
    parser.add_argument("--gpus", type=int, help="GPUs in all (default: trainer.devices x trainer.num_nodes, or 8)")
    parser.add_argument("--n_features", type=int, help="F, in the place of model.transcoder.n_features")
    parser.add_argument("--k", type=int, help="active features of a token (default: the activation's k, or 64)")
    parser.add_argument(
        "--tokens", type=int, help="tokens of a step over all GPUs (default: batch_size x tokens of an image x GPUs)"
    )
    parser.add_argument("--gpu_memory", type=_bytes, default=80e9, help="memory of a GPU (default: 80GB)")
    parser.add_argument("--flops", type=float, default=500e12, help="bf16 operations a second (default: 500e12)")
    parser.add_argument(
        "--bandwidth", type=_bytes, default=2.8e12, help="GPU memory, bytes per second (default: 2.8TB)"
    )
    parser.add_argument("--gather", type=_bytes, default=3.5e12, help="decoder rows, bytes per second (default: 3.5TB)")
    parser.add_argument("--link", type=_bytes, default=300e9, help="between GPUs of a machine (default: 300GB)")
    parser.add_argument("--far_link", type=_bytes, default=40e9, help="between machines, a GPU (default: 40GB)")
    parser.add_argument("--node", type=int, default=8, help="GPUs of a machine (default: 8)")
    parser.add_argument("--tables", action="store_true", help="print the tables of docs/scaling.md and nothing else")


def run(args: argparse.Namespace) -> None:
    """Prints the plan.

    Raises:
        UserError: no config, one that cannot be read, or numbers that do not fit.
    """
    from clt_lightning.parallel import plan

    if args.tables:
        print(plan.documented_tables(), end="")
        return
    if not args.config:
        raise UserError("plan needs a config of fit: --config configs/vitb32.yaml (or --tables)")
    config = _read(args.config)
    shape = _shape(config, args.n_features, args.k)
    gpus = args.gpus or _gpus(config)
    if gpus < 1:
        raise UserError(f"--gpus must be at least 1, got {gpus}")
    batch = int(_at(config, "data.init_args.batch_size", 64))
    tokens = args.tokens or batch * (shape.used or shape.positions) * gpus
    machine = plan.Machine(
        args.gpu_memory, args.flops, args.bandwidth, args.gather, args.link, args.far_link, args.node
    )
    plans = plan.all_plans(shape, machine, gpus, tokens)
    units = int(_at(config, "model.attention.n_features", 0))
    if units:  # they are not divided
        plans = [found for found in plans if found.feature == 1]
    chosen = plan.best(plans, machine)
    print(
        f"{shape.n_layers} layers of width {shape.d_model}, F = {shape.n_features:,}, k = {shape.k}: "
        f"{shape.divided / 1e6:,.0f} M weights; {gpus} GPUs of {size(machine.memory)}, {tokens:,} tokens per step\n"
    )
    print(plan.plan_table(plans, chosen, machine, line_width()))
    print("\nper GPU and step, on paper, nothing overlapped; 'groups x R': R GPUs share the features of each layer")
    cascade = _say_cascade(config, shape, machine, chosen or plans[0])
    moves = str(_at(config, "model.attention.kind", "units")) == "units"
    beside = _say_attention(units, shape, machine, chosen or plans[0], moves)
    if chosen is None:
        smallest = min(plans, key=lambda p: p.memory)
        print(
            f"none fits: the smallest takes {size(smallest.memory)} a GPU. Take more GPUs, fewer tokens a "
            "step, or model.tokens.max_tokens_per_chunk"
        )
        return
    if chosen.feature == 1:
        print(f"take plain training{' with trainer.strategy: ddp' if gpus > 1 else ''}: model.parallel.feature = 1")
    else:
        print(f"take feature sharding: model.parallel: {{feature: {chosen.feature}}}, data.init_args.batch_size counts")
        print(f"for a group of {chosen.feature} GPUs: {chosen.tokens:,} tokens, for the tokens per step stated above")
    _say_whole_run(config, chosen, cascade, beside)
    print(f"a checkpoint takes {size(chosen.checkpoint_bytes)} of disk, and of main memory on the first machine")


def _say_attention(units: int, shape: Any, machine: Any, step: Any, moves: bool) -> float:
    """What sparse attention, or an autoencoder of it, adds to a step beside the table; its seconds, 0 without."""
    if not units:
        return 0.0
    from clt_lightning.parallel import plan

    images = -(-step.tokens // (shape.used or shape.positions))
    cost = plan.units_cost(shape, machine, units, images, moves)
    print(
        f"model.attention comes on top: {people_count(cost.weights)} weights, {size(cost.memory)} on every GPU "
        f"({'units' if moves else 'its features'} are not divided: model.parallel.feature = 1), "
        f"{1e3 * cost.seconds:.1f} ms per step"
    )
    return cost.seconds


def _say_whole_run(config: dict[str, Any], step: Any, cascade: tuple[float, float], beside: float = 0.0) -> None:
    """What all steps of a run take, with the cascade's terms from their start on."""
    steps = int(_at(config, "trainer.max_steps", -1))
    if steps <= 0:
        print("trainer.max_steps is not set: how long the run takes depends on it")
        return
    more, start = cascade
    whole = steps * (step.seconds + beside + (1 - start) * more)
    extra = f", {(1 - start) * more * steps / whole:.0%} of them the cascade's terms" if more else ""
    gpus = f" on {step.gpus} GPUs, {step.gpus * whole / 3600:,.3g} GPU hours" if step.gpus > 1 else ""
    tokens = people_count(steps * step.tokens * step.gpus // step.feature)
    print(
        f"the whole run: {steps:,} steps, {tokens} tokens, {duration(whole)}{gpus}{extra}; "
        "validations, reading and decoding come on top"
    )


def _say_cascade(config: dict[str, Any], shape: Any, machine: Any, step: Any) -> tuple[float, float]:
    """What the cascade's terms, which the table leaves out, add to a step.

    Returns:
        seconds of a step that has them, and the share of the run before they begin; zeros where they are off.
    """
    from clt_lightning.parallel import plan
    from clt_lightning.training.losses import CascadeConfig

    keys = ("stream", "embedding", "reconstruction", "images", "start")
    cascade = CascadeConfig(
        **{key: _at(config, f"model.loss.cascade.{key}", getattr(CascadeConfig, key)) for key in keys}
    )
    if not cascade.is_on:
        return 0.0, 0.0
    images = min(cascade.images, -(-step.tokens // (shape.used or shape.positions)))
    more = plan.cascade_seconds(shape, machine, step.feature, images)
    print(
        f"loss.cascade comes on top from {cascade.start:.0%} of the run on: {images} images of a batch through the "
        f"clean and the replaced CLIP, {1e3 * more:.1f} ms per step ({more / step.seconds:.0%} of {step.name}'s); "
        "model.loss.cascade='{stream: 0, embedding: 0}' leaves it out"
    )
    return more, cascade.start


def _read(paths: Sequence[Path]) -> dict[str, Any]:
    """The configs over each other, their keys and values checked as fit does it."""
    from clt_lightning.cli.config_cli import config_keys
    from clt_lightning.cli.explain import complaint
    from clt_lightning.cli.layers import Layer

    files = [read_config(path, "--config") for path in paths]
    said = complaint([Layer(file.content, file) for file in files], config_keys())
    if said is not None:
        raise UserError(said)
    config: dict[str, Any] = {}
    for file in files:
        config = _merged(config, _with_class(file.content))
    return config


def _with_class(content: dict[str, Any]) -> dict[str, Any]:
    """A config in which the backbone's arguments stand under `init_args`, where it names no class."""
    model = content.get("model")
    given = model.get("backbone") if isinstance(model, dict) else None
    if isinstance(given, str):
        given = {"class_path": given}
    elif isinstance(given, dict) and not {"class_path", "init_args"} & given.keys():
        given = {"init_args": given}
    return content if not isinstance(model, dict) or given is None else content | {"model": model | {"backbone": given}}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merged(out[key], value) if both else value
    return out


def _at(config: dict[str, Any], key: str, default: Any) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return default if value is None else value


def _gpus(config: dict[str, Any]) -> int:
    devices, nodes = _at(config, "trainer.devices", "auto"), int(_at(config, "trainer.num_nodes", 1))
    return devices * nodes if isinstance(devices, int) and devices > 0 else 8 * nodes


def _shape(config: dict[str, Any], n_features: int | None, k: int | None) -> Any:
    from clt_lightning.core.sites import Sites
    from clt_lightning.parallel.plan import Shape

    depth, width, positions = _tower(config)
    sites = Sites.from_config(_at(config, "model.transcoder.sites", None)).of(
        _at(config, "model.transcoder.topology", "cross_layer")
    )
    layers = sites.resolve(depth, "the backbone")
    per_image = _at(config, "model.tokens.per_image", None)
    return Shape(
        n_layers=len(layers),
        d_model=width,
        positions=positions,
        n_features=n_features or int(_at(config, "model.transcoder.n_features", 6144)),
        k=k or int(_at(config, "model.transcoder.activation.init_args.k", 64)),
        cross_layer=_at(config, "model.transcoder.topology", "cross_layer") == "cross_layer",
        used=None if per_image is None else min(int(per_image), positions),
        tower=depth if sites.once else layers[-1] + 1,
    )


def _tower(config: dict[str, Any]) -> tuple[int, int, int]:
    """Blocks, width and tokens of an image of the backbone, without its weights."""
    from clt_lightning.backbone.clip import FrozenCLIP
    from clt_lightning.backbone.clip.source import find_source
    from clt_lightning.backbone.make import make_backbone, parse_spec
    from clt_lightning.backbone.vit import FrozenViT

    given = config.get("model", {}).get("backbone")
    cls, arguments = parse_spec(given, trusted=True)
    if cls is FrozenViT:
        return _timm_tower(arguments.get("name", "vit_small_patch14_dinov2"), arguments.get("image_size"))
    if cls is not FrozenCLIP:  # nobody but the class itself knows
        made = make_backbone(given, trusted=True)
        return made.n_layers, made.d_model, made.n_positions
    name, pretrained = arguments.get("name", "ViT-B-32-quickgelu"), arguments.get("pretrained", "openai")
    pretrained = None if pretrained is None else expand(pretrained, "model.backbone.pretrained")
    tower = find_source(name, pretrained).model_cfg["vision_cfg"]
    if tower.get("timm_model_name"):
        return _timm_tower(tower["timm_model_name"], None)
    return tower["layers"], tower["width"], (tower["image_size"] // tower["patch_size"]) ** 2 + 1


def _timm_tower(name: str, image_size: int | None) -> tuple[int, int, int]:
    from clt_lightning.backbone.vit import family_by_name

    family = family_by_name(name, image_size)
    return len(family.blocks), family.d_model, family.tokens.n_positions
