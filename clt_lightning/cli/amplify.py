"""`steer --amplify`: codes of [CLS] amplified, beside the controls."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clt_lightning.cli.arguments import run_options
from clt_lightning.cli.options import add_seed, check_least, refuse_given
from clt_lightning.cli.second_backbone import FORMS, second_backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import write_json
from clt_lightning.core.table import Column, lay_out
from clt_lightning.core.terminal import line_width

if TYPE_CHECKING:
    from torch import Tensor

    from clt_lightning.analysis import Run
    from clt_lightning.analysis.amplify import AmplifyOptions, AmplifyResult

#: Made images, and images of a folder, that the gate is asked about
_OUTSIDE = 256
_BATCH = 32

#: Options that mean something with --amplify alone
_DEFAULTS: dict[str, Any] = {
    "strength": [1.0],
    "layers": None,
    "gate": [0.99],
    "gate-by": "fvu",
    "neighbours": 50,
    "index": None,
    "arms": None,
    "train-images": 10_000,
    "val-images": 5_000,
    "outside": None,
    "seed": 0,
}


def refuse_amplify_options(args: argparse.Namespace) -> None:
    """For edits of single features.

    Raises:
        UserError: an option was given that would do nothing.
    """
    refuse_given(args, _DEFAULTS, "is an option of --amplify, which is not given: it would do nothing")


def add_amplify_options(parser: argparse.ArgumentParser) -> None:
    """Options of `--amplify`."""
    more = parser.add_argument_group("--amplify: all features at [CLS] together (VS2, VS2++), beside controls")
    more.add_argument(
        "--amplify",
        nargs="*",
        type=float,
        metavar="GAMMA",
        help="multiply all codes of [CLS]; of several values (default: 1.1 1.25 1.5 2 3) `val` chooses for each arm",
    )
    more.add_argument(
        "--strength",
        nargs="+",
        type=float,
        default=_DEFAULTS["strength"],
        metavar="LAMBDA",
        help="what the change is multiplied by; strength x (gamma - 1) alone acts (default: 1)",
    )
    more.add_argument(
        "--layers", metavar="A-B", help="blocks whose features are amplified, such as 8-11 (default: all)"
    )
    more.add_argument(
        "--gate",
        nargs="+",
        type=float,
        default=_DEFAULTS["gate"],
        metavar="Q",
        help="steer images up to this quantile of the training images' FVU at [CLS], for each layer by itself; of "
        "several `val` chooses (default: 0.99)",
    )
    more.add_argument(
        "--gate-by",
        choices=("fvu", "domain"),
        default=_DEFAULTS["gate-by"],
        help="fvu: how well [CLS] is rebuilt, the published gate (default); domain: that, and how far [CLS] is "
        "from the training images', both neither too large nor too small; Q is the least share of images of their "
        "kind that is steered",
    )
    more.add_argument(
        "--neighbours",
        type=int,
        default=_DEFAULTS["neighbours"],
        metavar="K",
        help="training images of VS2++, k-NN and RAG (default: 50)",
    )
    more.add_argument(
        "--index",
        metavar="BACKBONE",
        help=f"look for neighbours in the embedding of a second backbone: {FORMS} (default: the run's own backbone)",
    )
    more.add_argument("--arms", nargs="+", metavar="NAME", help="these arms alone (docs/acting.md has their names)")
    more.add_argument(
        "--train-images",
        type=int,
        default=_DEFAULTS["train-images"],
        metavar="N",
        help="training images, evenly spaced (default: 10,000)",
    )
    more.add_argument(
        "--val-images",
        type=int,
        default=_DEFAULTS["val-images"],
        metavar="N",
        help="validation images that choose (default: 5,000)",
    )
    more.add_argument(
        "--outside",
        type=Path,
        metavar="FOLDER",
        help="pictures from elsewhere (a folder, a zip or a tar): the share of them that the gate would steer is "
        "printed, beside that of made noise",
    )
    add_seed(more, "of random directions and resamples")


def run_amplify(args: argparse.Namespace) -> None:
    """Measures, prints and writes.

    Raises:
        UserError: options that do not go together, or what `analysis.amplify.amplify` raises.
    """
    from clt_lightning.analysis import open_run
    from clt_lightning.analysis.amplify import AmplifyOptions, amplify
    from clt_lightning.analysis.held_out import refuse_shared

    _check(args)
    opened = open_run(args.run, **run_options(args))
    options = AmplifyOptions(
        gammas=tuple(args.amplify) or AmplifyOptions.gammas,
        strengths=tuple(args.strength),
        quantiles=tuple(args.gate),
        gate_by=args.gate_by,
        layers=None if args.layers is None else _blocks(args.layers),
        neighbours=args.neighbours,
        arms=args.arms,
        seed=args.seed,
    )
    head = opened.require_head("nothing to compare")
    names = opened.datamodule.classnames
    embed, index = second_backbone(opened, args.index)
    wanted = {"train": args.train_images, "val": args.val_images, "test": args.images}
    of_run = {"train": "train", "val": "val", "test": args.split}
    # before the first long pass: all three are there, and are three
    totals = {name: opened.count(of_run[name], limit) for name, limit in wanted.items()}
    refuse_shared(opened.datamodule, args.split)
    splits = {name: opened.batches(of_run[name], limit) for name, limit in wanted.items()}
    outside = _outside(opened, args.split, args.outside, args.seed)
    _say_memory(opened, options, totals["train"])
    found = amplify(
        opened.clip,
        opened.transcoder,
        splits,
        head,
        names,
        options,
        embed=embed,
        index=index,
        ensemble=_ensemble(opened) if args.arms is None or "ensemble" in args.arms else None,
        outside=outside,
        totals={name: total for name, total in totals.items() if total is not None},
    )
    print("\n".join(amplify_lines(found, line_width())))
    if args.output is not None:
        write_json(args.output, {"run": str(args.run), "split": args.split, "amplify": found.to_json()}, indent=None)
        print(f"wrote {args.output}")


def _say_memory(opened: Run, options: AmplifyOptions, images: int | None) -> None:
    from clt_lightning.analysis.amplify import Amplifier, memory_of
    from clt_lightning.core.people import size
    from clt_lightning.core.say import say
    from clt_lightning.data.lists import lines

    if images is None:
        return
    data, arms = opened.datamodule, options.arms
    many = len(data.templates or ()) + (len(lines("templates_imagenet80")) if arms is None or "ensemble" in arms else 0)
    most = memory_of(
        Amplifier(opened.clip, opened.transcoder, options.layers),
        images,
        batch=max(data.eval_batch_size, _BATCH),  # of images from elsewhere always so many
        classes=len(data.classnames),
        prompts=many if opened.clip.has_text else 0,
        neighbours=options.neighbours,
        gate_by=options.gate_by,
        probe=arms is None or "probe" in arms,
    )
    say(f"memory: about {size(most)} beside models and data loaders, with {images:,} training images (--train-images)")


def _check(args: argparse.Namespace) -> None:
    for option, given in (
        ("--image", args.image),
        ("--tokens", args.tokens not in ("all", "cls")),
        ("--base", args.base != "original"),
    ):
        if given:
            raise UserError(f"--amplify measures whole splits at [CLS] in the original model: leave {option} out")
    if args.split in ("train", "val"):
        raise UserError(
            f"--split {args.split}: `train` and `val` set thresholds and strengths; measure on another split"
        )
    check_least(args, train_images=2, val_images=2)  # of one image there is no variance, and no gate


def _blocks(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"--layers {text}: expected blocks such as 11, 8-11 or 3,7,11")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return sorted(set(found))


def _ensemble(opened: Run) -> Tensor | None:
    """The head of the data's prompts and the 80 of CLIP's paper together; None without a text tower."""
    if not opened.clip.has_text:
        return None
    from clt_lightning.data.lists import lines

    data = opened.datamodule
    prompts = list(dict.fromkeys([*data.templates, *lines("templates_imagenet80")]))
    return opened.clip.zero_shot_head(data.classnames, prompts)


def _outside(opened: Run, split: str, folder: Path | None, seed: int) -> dict[str, Iterable[Tensor]]:
    """Images that no training image looks like."""
    import torch

    from clt_lightning.core.paths import expand
    from clt_lightning.data.sets.pictures import find_pictures

    generator = torch.Generator().manual_seed(seed)
    size = opened.clip.image_size
    order = torch.randperm(size * size, generator=generator)

    def noise() -> Iterator[Tensor]:
        for _ in range(0, _OUTSIDE, _BATCH):
            yield torch.randn(_BATCH, 3, size, size, generator=generator)

    def shuffled() -> Iterator[Tensor]:
        for batch in opened.batches(split, _OUTSIDE):
            images = batch["image"]
            yield images.flatten(2)[:, :, order].view_as(images)

    found: dict[str, Iterable[Tensor]] = {"Gaussian noise": noise(), "test images, pixels shuffled": shuffled()}
    if folder is not None:
        place = Path(expand(str(folder), "--outside"))
        found[f"pictures of {folder}"] = find_pictures(place, "--outside", _OUTSIDE, opened.clip.preprocess)
    return found


def amplify_lines(found: AmplifyResult, width: int | None = None) -> list[str]:
    """The arms, and what the gate does, as text."""
    from clt_lightning.analysis.amplify import WORDS

    arms = found.arms
    columns = [
        Column("chosen on val", [_choice(arm.choice.to_json()) for arm in arms], 16),
        Column("steered %", ["" if arm.steered is None else f"{100 * arm.steered:.1f}" for arm in arms], 10),
        Column("val %", [f"{100 * arm.val:.2f}" for arm in arms], 8),
        Column("top-1 %", [f"{100 * arm.accuracy.value:.2f}" for arm in arms], 9),
        Column("95 % interval", [f"{100 * a.accuracy.low:.1f} .. {100 * a.accuracy.high:.1f}" for a in arms], 15),
        Column("points", [f"{100 * arm.difference.value:+.2f}" for arm in arms], 8, "to untouched, paired"),
        Column(
            "95 % interval",
            [f"{100 * a.difference.low:+.2f} .. {100 * a.difference.high:+.2f}" for a in arms],
            17,
            "to untouched, paired",
        ),
        Column("won", [str(arm.won) for arm in arms], 5, "images"),
        Column("lost", [str(arm.lost) for arm in arms], 5, "images"),
    ]
    n = found.images
    where = ", ".join(f"{site} of block {block}" for site, block in found.places)
    lines = [
        f"{n['test']:,} images; each arm's strength chosen on {n['val']:,} validation images; means, thresholds and "
        f"neighbours ({found.index}) from {n['train']:,} training images",
        f"features of blocks {', '.join(map(str, found.layers))}; [CLS] is moved at {where}",
        "",
        *lay_out(Column("arm", [WORDS[arm.name] for arm in arms], 30, left=True), columns, width),
    ]
    lines += [f"left out: {WORDS[arm]}: {why}" for arm, why in found.left_out.items()]
    gated = next((arm for arm in arms if arm.name == "vs2_gated"), None)
    if gated is not None and gated.steered is not None:
        own = f"{100 * gated.steered:.1f} % of these images"
        others = [f"{100 * o['steered']:.1f} % of {name} ({o['images']:.0f})" for name, o in found.outside.items()]
        how = f"quantile {gated.choice.quantile:g}{', by domain' if found.gate_by == 'domain' else ''}"
        lines += ["", f"the gate ({how}) steers {', '.join([own, *others])}"]
        if len(found.targets) > 1 and gated.steered_layers is not None:
            shares = ", ".join(f"{100 * share:.1f}" for share in gated.steered_layers)
            lines.append(f"of the layers' own terms it lets through, in % of these images: {shares}")
    return lines


def _choice(named: dict[str, float]) -> str:
    words = {"gamma": "gamma", "strength": "x", "quantile": "q", "share": "share", "k": "k"}
    parts = [f"{words[name]} {value:g}" for name, value in named.items() if not (name == "strength" and value == 1)]
    return " ".join(parts)
