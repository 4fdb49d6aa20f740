"""`graph`: the attribution graph of one image, and whether it predicts interventions."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clt_lightning.cli.arguments import add_run_options, run_options
from clt_lightning.cli.faithful import add_curve_options, baseline, write_curves, write_evolution
from clt_lightning.cli.graph_validation import add_validation_options, check_validates, precision, write_validation
from clt_lightning.cli.options import add_seed, check_least, file_option
from clt_lightning.core.errors import UserError
from clt_lightning.core.paths import expand
from clt_lightning.core.terminal import line_width

if TYPE_CHECKING:
    from torch import Tensor

    from clt_lightning.analysis import Run
    from clt_lightning.analysis.circuits import Graph
    from clt_lightning.analysis.target import Target
    from clt_lightning.transcoder.attention import AnyAttention


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `graph`."""
    add_run_options(parser)
    parser.add_argument(
        "--image",
        metavar="KEY",
        help="the image, by its key in the split; needed but for --validate, --curves and --evolution",
    )
    parser.add_argument("--split", default="test", help="split that the image is of (default: test)")
    parser.add_argument(
        "--target",
        metavar="CLASS or 'CLASS - CLASS'",
        help="what to explain: a class's logit, or the difference of two; words of several classes' names stand for "
        "the mean of their logits, words in double quotes are a caption ('\"a red square\" - blue cross'); default: "
        "the most probable classes, each against the mean of all, weighted by "
        "probability",
    )
    parser.add_argument(
        "--max-nodes",
        type=int,
        default=4096,
        help="features that are nodes at most; the least influential others are summed to one node a layer (default: "
        "4096)",
    )
    parser.add_argument(
        "--summed", action="store_true", help="a node is a feature at all its positions, not at each (no predictions)"
    )
    parser.add_argument(
        "--attention",
        nargs="?",
        const="",
        metavar="RUN",
        help="what attention adds is nodes as well: units of the sparse attention, or features of the autoencoder, "
        "that was trained with the run (configs/attention.yaml, configs/attention_sae.yaml); with RUN those of another "
        "run, or of a folder of `attention --units`, or features of a run of autoencoders of what attention adds "
        "(configs/site/attention.yaml, on the same backbone)",
    )
    parser.add_argument(
        "--skip",
        choices=("node", "through"),
        default="node",
        help="what a transcoder's linear skip adds: a node at each position, not followed further (default), or a path "
        "that the graph looks through",
    )
    parser.add_argument(
        "--precision",
        choices=("32", "64"),
        default="32",
        help="bits of all numbers; 64: books exact to 1e-10 (default: 32)",
    )
    parser.add_argument(
        "--node-threshold",
        type=float,
        default=0.8,
        metavar="SHARE",
        help="nodes are written that carry this share of the influence (default: 0.8; 1: all)",
    )
    parser.add_argument(
        "--edge-threshold",
        type=float,
        default=0.98,
        metavar="SHARE",
        help="edges are written that carry this share of the influence among these nodes (default: 0.98; 1: all)",
    )
    parser.add_argument(
        "--show", type=int, default=10, metavar="N", help="most influential nodes printed (default: 10)"
    )
    add_validation_options(parser)
    parser.add_argument(
        "--page",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="add the circuit to the run's report as a page of this image (default: <run>/report, made where it is not "
        "there): to look at, pin, group, and ask what happens without some of its nodes; with --evolution, add its "
        "page",
    )
    add_curve_options(parser)
    add_seed(parser, "of what --validate and --curves draw")
    parser.add_argument(
        "--output",
        type=Path,
        help="write the graph there, as JSON in circuit-tracer's schema; beside it, with --validate, --curves and "
        "--evolution, FILE.validation.json, FILE.curves.json and FILE.evolution.json",
    )


def run(args: argparse.Namespace) -> None:
    """Makes the graph, prints its scores, and writes it.

    Raises:
        UserError: an image, a class or a share that cannot be, or data without class names.
    """
    from clt_lightning.analysis import open_run
    from clt_lightning.analysis.circuits.edges import check_share

    check_share("--node-threshold", args.node_threshold)
    check_share("--edge-threshold", args.edge_threshold)
    check_least(args, max_nodes=1, show=0, validate=2, validate_images=1, curves=1, baseline_images=1, evolution=2)
    args.output = file_option(args.output)
    if args.image is None and args.validate is None and args.curves is None and args.evolution is None:
        raise UserError("graph needs --image KEY (or --validate N, --curves N, --evolution N)")
    if args.image is None and args.attention is not None:
        raise UserError("--attention needs --image KEY")
    if args.image is None and args.evolution is None and args.page is not None:
        raise UserError("--page needs --image KEY, or --evolution N")
    if args.image is None and args.target is not None:
        raise UserError("--target needs --image KEY")
    opened = open_run(args.run, **run_options(args))
    opened.require_head("no logit to explain")
    place = _place(args, opened)
    if args.validate is not None:
        check_validates(opened)
    if args.image is not None:
        _graph(args, opened, place)
    if args.validate is not None:
        write_validation(args, opened, None if args.output is None else args.output.with_suffix(".validation.json"))
    if args.curves is not None:
        write_curves(args, opened, None if args.output is None else args.output.with_suffix(".curves.json"))
    if args.evolution is not None:
        content = write_evolution(
            args, opened, None if args.output is None else args.output.with_suffix(".evolution.json")
        )
        if place is not None:
            from clt_lightning.report.existing import add_evolution

            print(f"added {place.folder / 'index.html'}{add_evolution(place.folder, content)}")


def _graph(args: argparse.Namespace, opened: Run, place: _Place | None) -> None:
    """One image's graph, and whether it predicts."""
    from clt_lightning.analysis.circuits import attribute, attribute_with_attention
    from clt_lightning.analysis.circuits.faithful import Features
    from clt_lightning.analysis.circuits.residual import explains_stream, residual_graph

    image = opened.images([args.image], args.split)[args.image]
    dtype = precision(args)
    targets, weights = _targets(opened, args.target, image)
    about = {"key": args.image, "split": args.split, "run": str(args.run), "scan": opened.folder.parent.name}
    if explains_stream(opened.transcoder):
        usual = baseline(args, opened, Features(opened.clip, opened.transcoder))
        graph = residual_graph(opened.clip, opened.transcoder, image, targets[0], usual, dtype=dtype, about=about)
    elif args.attention is not None:
        if args.summed:
            raise UserError("--attention has a node for each position: leave --summed out")
        attention = _attention(args, opened)
        graph = attribute_with_attention(
            opened.clip,
            opened.transcoder,
            attention,
            image,
            targets,
            max_nodes=max(args.max_nodes, 20_000),
            skip=args.skip,
            dtype=dtype,
            progress=True,
            about=about | {"attention": args.attention or str(args.run)},
        )
    else:
        graph = attribute(
            opened.clip,
            opened.transcoder,
            image,
            targets,
            weights=weights,
            positions="summed" if args.summed else "each",
            max_nodes=args.max_nodes,
            skip=args.skip,
            dtype=dtype,
            progress=True,
            about=about,
        )
    show(graph, args.show)
    if args.output is not None:
        graph.prune(args.node_threshold, args.edge_threshold).to_json(args.output)
        print(f"wrote {args.output}")
    if place is not None:
        _add(place, args, opened, graph, image)


def _attention(args: argparse.Namespace, opened: Run) -> AnyAttention:
    """What explains what attention adds.

    Raises:
        UserError: there is none where `--attention` says.
    """
    from clt_lightning.analysis import open_run
    from clt_lightning.transcoder.attention import load_attention

    if not args.attention:
        if opened.attention is None:
            raise UserError(
                f"--attention: {opened.folder} was trained without sparse attention, and without an autoencoder of it "
                "(configs/attention.yaml, configs/attention_sae.yaml): name another run, or a folder of `attention "
                "--units`"
            )
        return opened.attention
    folder = Path(expand(args.attention, "--attention"))
    if (folder / "config.json").is_file():
        return load_attention(folder, trust=args.trust_config)
    other = open_run(folder, **run_options(args))
    return other.transcoder if other.attention is None else other.attention


@dataclass(frozen=True)
class _Place:
    """Where in a report a circuit goes; -1 where there is no image, or it has no class."""

    folder: Path
    number: int
    label: int


def _place(args: argparse.Namespace, opened: Run) -> _Place | None:
    """The report that pages are added to, and the image's number in it, found before anything is computed.

    Raises:
        UserError: the report is of other images, weights or pages.
    """
    if args.page is None:
        return None
    from clt_lightning.report.existing import report_of
    from clt_lightning.report.source import read_source

    source = read_source(opened.folder, args.split, with_model=True)
    keys, labels = source.images
    if args.image is not None and args.image not in keys:
        raise UserError(
            f"--page: the report is of {len(keys):,} images of the split {args.split!r}, and --image {args.image} is "
            "none of them"
        )
    number = -1 if args.image is None else keys.index(args.image)
    label = -1 if args.image is None else labels[number]
    return _Place(report_of(source, args.page or None, run_options(args), "--page"), number, label)


def _add(place: _Place, args: argparse.Namespace, opened: Run, graph: Graph, image: Tensor) -> None:
    """Adds the circuit to the report."""
    from clt_lightning.report.circuit import pack_circuit, picture_of
    from clt_lightning.report.existing import add_circuit

    found = picture_of(opened, image, args.image, place.label) | {"circuits": [pack_circuit(graph, opened, image)]}
    print(f"added {place.folder / 'index.html'}{add_circuit(place.folder, place.number, found)}")


def _targets(opened: Run, text: str | None, image: Tensor) -> tuple[list[Target], list[float]]:
    from clt_lightning.analysis.circuits import top_targets
    from clt_lightning.analysis.target import Target

    names, scale = opened.datamodule.classnames, opened.clip.logit_scale
    assert opened.head is not None
    if text is not None:
        return [Target.parse(opened.head, names, text, scale, opened.clip)], [1.0]
    embedding = opened.clip.encode_image(image)[0]
    return top_targets(opened.head, names, embedding, scale=scale)


def show(graph: Graph, n: int) -> None:
    """Prints what a graph holds."""
    from clt_lightning.analysis.circuits.graph import CODES, COUNTED
    from clt_lightning.core.table import Column, lay_out

    scores, nodes = graph.scores, graph.nodes
    for target, weight, at in zip(
        graph.targets, graph.weights.tolist(), nodes.of("target").nonzero().flatten().tolist()
    ):
        share = f", weight {weight:.3f}" if len(graph.targets) > 1 else ""
        print(f"{target.name}: {float(nodes.activation[at]):.3f}{share}")
    kinds = ("feature", "attention", "error", "attention_error", "skip", "input", "bias")
    counts = {kind: int(nodes.of(kind).sum()) for kind in kinds}
    said = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in counts.items() if count)
    print(f"{said} nodes, {len(graph.edges):,} edges")
    ends = ", ".join(f"{kind} {share:.1%}" for kind, share in scores.ends.items() if share)
    print(f"replacement score {scores.replacement:.3f}, completeness {scores.completeness:.3f} (biases not counted)")
    print(f"with biases, influence ends in: {ends}; biases are {scores.constants:.1%} of all inputs")
    top = graph.top(n, *CODES)
    if not top:
        return
    total = float(nodes.influence[nodes.of(*COUNTED) & ~nodes.of("target")].sum())
    columns = [
        Column("code", [f"{float(nodes.activation[i]):.3f}" for i in top], 9),
        Column("influence", [f"{float(nodes.influence[i]) / total:.2%}" for i in top], 11),
    ]
    print()
    print(
        "\n".join(
            lay_out(Column("most influential", [nodes[i].name for i in top], 18, left=True), columns, line_width())
        )
    )
