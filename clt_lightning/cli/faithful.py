"""`graph --curves` and `graph --evolution`: circuits of many images, and features over the layers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.terminal import line_width

if TYPE_CHECKING:
    from torch import Tensor

    from clt_lightning.analysis import Run
    from clt_lightning.analysis.circuits.faithful import Baseline, Curves, Dimensions, Features


def add_curve_options(parser: argparse.ArgumentParser) -> None:
    """Options of `--curves` and of graphs of the residual stream."""
    parser.add_argument(
        "--curves",
        type=int,
        metavar="N",
        help="insertion and deletion curves over N images of the split that the model gets right: what is left of the "
        "class with the circuit alone, and without it, for several rules and controls; --image may be left out",
    )
    parser.add_argument(
        "--arms",
        nargs="+",
        metavar="NAME",
        help="arms of --curves: at resid_post edges, nodes, edges_plain, nodes_plain; of MLPs graph, nodes, "
        "nodes_plain; of both neurons, activation, random (default: all)",
    )
    parser.add_argument(
        "--errors",
        choices=("node", "kept", "masked"),
        default="node",
        help="what --curves does with what a layer's reconstruction leaves out: a node like any other (default), "
        "always kept, or never",
    )
    parser.add_argument(
        "--baseline",
        choices=("median", "mean", "zero"),
        default="median",
        help="what a feature is set to when it is left out: its median or mean at that position over training images, "
        "or zero (default: median)",
    )
    parser.add_argument(
        "--baseline-images",
        type=int,
        default=1024,
        metavar="N",
        help="training images behind the baseline (default: 1024)",
    )
    parser.add_argument(
        "--evolution",
        type=int,
        metavar="N",
        help="follow features over the layers on N images of the split: nearest features by weights and by activation, "
        "position selectivity, Moran's I; at resid_post the strongest edges too; kept in the run's folder, for the "
        "report",
    )


def baseline(args: argparse.Namespace, opened: Run, units: Features | Dimensions, name: str = "features") -> Baseline:
    """The baseline that the options ask for."""
    from clt_lightning.analysis.circuits.faithful.kept import kept_baseline

    return kept_baseline(opened, units, args.baseline, args.baseline_images, name=name)


def write_curves(args: argparse.Namespace, opened: Run, path: Path | None) -> None:
    """Measures the curves, prints their areas, and writes them.

    Raises:
        UserError: arguments that cannot be, or no image that the model gets right.
    """
    from clt_lightning.analysis.circuits.faithful import Dimensions, Features, curves
    from clt_lightning.analysis.circuits.faithful.mlp_arms import MlpArms
    from clt_lightning.analysis.circuits.residual import ResidualArms, explains_stream
    from clt_lightning.core.files import write_json

    clip, clt, head = opened.clip, opened.transcoder, opened.head
    assert head is not None
    made: Any = ResidualArms if explains_stream(clt) else MlpArms
    unknown = sorted(set(args.arms or ()) - set(made.words()))
    if unknown:
        raise UserError(f"--arms: there is no {unknown[0]!r}; of this run's transcoder: {', '.join(made.words())}")
    units = Features(clip, clt)
    usual = baseline(args, opened, units)
    own = None
    if args.arms is None or "neurons" in args.arms:
        own = baseline(args, opened, Dimensions(clip, units.write, units.blocks), "dimensions")
    arms = made(
        clip, clt, usual, head, opened.datamodule.classnames,
        dimensions=own, names=args.arms, errors=args.errors, seed=args.seed,
    )  # fmt: skip
    about = {
        "split": args.split,
        "baseline": {"kind": args.baseline, "images": usual.n_images},
        "errors": args.errors,
        "topology": clt.topology,
        "sites": clt.sites.config(),
    }
    right = Right(partial(opened.batches, args.split, limit=args.curves), clip, head)
    found = curves(arms, right, head, clip.logit_scale, args.curves, seed=args.seed, progress=True, about=about)
    print(
        f"\n{len(found.keys)} images of {args.split} that the model gets right, of {right.seen}; "
        f"baseline {args.baseline}, errors {args.errors}"
    )
    print("\n".join(curve_lines(found, made.words(), line_width())))
    if path is not None:
        write_json(path, found.to_json() | {"words": made.words()}, indent=None)
        print(f"wrote {path}")


class Right:
    """Key, image and label of the images whose label is the most probable class.

    Args:
        batches: begins a pass.
        clip: the backbone.
        head: `(embed_dim, classes)`.
    """

    def __init__(self, batches: Callable[[], Iterable[dict[str, Any]]], clip: Any, head: Tensor) -> None:
        self.batches, self.clip, self.head, self.seen = batches, clip, head, 0

    def __iter__(self) -> Iterator[tuple[str, Tensor, int]]:
        for batch in self.batches():
            best = (self.clip.encode_image(batch["image"].to(self.clip.device)) @ self.head).argmax(1).tolist()
            for key, image, label, predicted in zip(batch["key"], batch["image"], _labels(batch), best):
                self.seen += 1
                if label == predicted:
                    yield key, image, label


def _labels(batch: dict[str, Any]) -> list[int]:
    """-1 of images without one: data need not have any."""
    label = batch.get("label")
    return [-1] * len(batch["image"]) if label is None else [int(one) for one in label]


def curve_lines(found: Curves, words: dict[str, str], width: int | None = None) -> list[str]:
    """Areas of every arm, as text."""
    from clt_lightning.core.table import Column, lay_out

    names = list(found.arms)
    columns = []
    for measure, said in (("adjusted_logit", "logit less mean"), ("probability", "probability")):
        for axis in ("log", "linear"):
            areas = found.auc(measure, axis)
            for mode in ("insertion", "deletion"):
                cells = [f"{a.value:.3f} [{a.low:.2f}, {a.high:.2f}]" for a in (areas[mode][name] for name in names)]
                columns.append(Column(mode, cells, 21, f"{said}, {axis} axis"))
    labels = Column("area under the curve", [words[name] for name in names], 34, left=True)
    return lay_out(labels, columns, width)


def write_evolution(args: argparse.Namespace, opened: Run, path: Path | None) -> dict[str, Any]:
    """Follows features over the layers, prints medians, and keeps all of it in the run's folder.

    Args:
        args: the command's.
        opened: the run.
        path: a file that it is written to as well.

    Returns:
        What was written (docs/results-schema.md).

    Raises:
        UserError: the run's folder cannot be written to, and there is no other file.
    """
    from clt_lightning.analysis.circuits.faithful import Features
    from clt_lightning.analysis.circuits.residual import evolution, explains_stream
    from clt_lightning.analysis.circuits.residual.evolution import summed_edges
    from clt_lightning.core.files import write_json
    from clt_lightning.report.evolution import PLACE
    from clt_lightning.runs.folder import RunFolder

    clip, clt, n = opened.clip, opened.transcoder, args.evolution
    kept = os.access(opened.folder, os.W_OK)
    if not kept and path is None:
        raise UserError(f"--evolution: {opened.folder} cannot be written to: name a file with --output FILE")
    batches = partial(opened.batches, args.split, limit=n)
    found = evolution(clip, clt, batches(), images=n, progress=True)
    if explains_stream(clt):
        assert opened.head is not None
        usual = baseline(args, opened, Features(clip, clt))
        images = ((image, label) for batch in batches() for image, label in zip(batch["image"], _labels(batch)))
        total = summed_edges(clip, clt, images, usual, opened.head, opened.datamodule.classnames, n, progress=True)
        found = found.with_edges(total)
    about = {"run": str(args.run), "split": args.split, "step": RunFolder(opened.folder).exported_at}
    content = about | found.to_json()
    print("\n".join(evolution_lines(content, line_width())))
    for place in (opened.folder / PLACE if kept else None, path):
        if place is not None:
            write_json(place, content, indent=None)
            print(f"wrote {place}")
    return content


def evolution_lines(content: dict[str, Any], width: int | None = None) -> list[str]:
    """Medians over features of every layer, as text."""
    from clt_lightning.core.table import Column, lay_out

    layers, pairs = content["layers"], content["pairs"]
    middle = content["quantiles"].index(0.5)

    def cells(spreads: list[list[float | None] | None]) -> list[str]:
        values = [None if spread is None else spread[middle] for spread in spreads]
        return ["-" if v is None else f"{v:.4f}" for v in values]

    columns = [Column("alive", [f"{layer['alive']:,}" for layer in layers], 8)]
    heads = {"frequency": "fires", "selectivity": "bits of place", "position_share": "share", "moran": "Moran's I"}
    columns += [
        Column(said, cells([layer["spread"][name] for layer in layers]), 14, "median over features")
        for name, said in heads.items()
    ]
    for rule, said in (("weights", "cosine"), ("profiles", "Spearman"), ("edges", "edge")):
        if all(pair[rule] is not None for pair in pairs):
            spreads = [None, *(pair[rule]["spread"] for pair in pairs)]
            columns.append(Column(said, cells(spreads), 10, "nearest in the block before"))
    return lay_out(Column("block", [str(layer["block"]) for layer in layers], 8), columns, width)
