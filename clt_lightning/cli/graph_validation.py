"""`graph --validate`: whether graphs of many images predict what interventions do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.terminal import line_width

if TYPE_CHECKING:
    from torch import Tensor

    from clt_lightning.analysis import Run
    from clt_lightning.analysis.target import Target


def add_validation_options(parser: argparse.ArgumentParser) -> None:
    """Options of `--validate`."""
    parser.add_argument(
        "--validate",
        type=int,
        metavar="N",
        help="compare predictions with interventions on N nodes per image, half of them the most influential: "
        "everything held, codes read anew, live model; --image may be left out",
    )
    parser.add_argument(
        "--validate-images",
        type=int,
        default=8,
        metavar="N",
        help="images of --validate: that of --image, if any, and others, evenly spaced over the split (default: 8)",
    )
    parser.add_argument(
        "--validate-target",
        choices=("difference", "class"),
        default="difference",
        help="what --validate reads of each image but for that of --image with --target: its most probable class "
        "against the next (default), or against the mean of all",
    )


def check_validates(opened: Run) -> None:
    """A UserError where there is nothing that predicts."""
    from clt_lightning.analysis.circuits.residual import explains_stream

    if explains_stream(opened.transcoder):
        raise UserError("--validate is of transcoders in the place of MLPs; here --curves says what circuits do")


def precision(args: argparse.Namespace) -> Any:
    """The type that `--precision` asks for."""
    import torch

    return torch.float64 if args.precision == "64" else torch.float32


def write_validation(args: argparse.Namespace, opened: Run, path: Path | None) -> None:
    """Compares, prints the table, and writes it with all single interventions."""
    from clt_lightning.analysis.circuits import validate
    from clt_lightning.analysis.circuits.validation import images_of, lines
    from clt_lightning.core.files import write_json

    images, keys = images_of(opened.batches(args.split, limit=args.validate_images))
    if args.image is not None:
        own = opened.images([args.image], args.split)[args.image]
        others = [(key, image) for key, image in zip(keys, images) if key != args.image]
        keys, images = (list(column) for column in zip((args.image, own), *others[: args.validate_images - 1]))
    targets = [_target(args, opened, image, first=number == 0) for number, image in enumerate(images)]
    found = validate(
        opened.clip,
        opened.transcoder,
        images,
        targets,
        args.validate,
        seed=args.seed,
        dtype=precision(args),
        progress=True,
    )
    print(f"\npredicted and observed change, {args.validate} nodes of {len(keys)} images, taken away and doubled")
    print("\n".join(lines(found, line_width())))
    if path is not None:
        table = {name: values.tolist() for name, values in found.table.items()}
        said = {"keys": keys, "targets": [target.name for target in targets], "agreements": found.to_json()}
        write_json(path, said | {"table": table}, indent=None)
        print(f"wrote {path}")


def _target(args: argparse.Namespace, opened: Run, image: Tensor, first: bool) -> Target:
    """What is read of an image."""
    from clt_lightning.analysis.target import Target

    head, names, scale = opened.head, opened.datamodule.classnames, opened.clip.logit_scale
    assert head is not None
    if first and args.target is not None:
        return Target.parse(head, names, args.target, scale, opened.clip)
    best = (opened.clip.encode_image(image) @ head)[0].topk(min(2, len(names))).indices.tolist()
    if len(best) == 1:
        return Target.of_class(head, names, best[0], scale)
    if args.validate_target == "class":
        return Target.centred(head, names, best[0], scale)
    return Target.difference(head, names, best[0], best[1], scale)
