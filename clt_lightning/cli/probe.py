"""`probe`: linear read-outs of a run's features and codes, and class logits for a backbone without a text tower."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from clt_lightning.cli.arguments import add_run_options, run_options
from clt_lightning.cli.options import add_pool, add_sparse, check_least, refuse_given
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json, write_json
from clt_lightning.core.table import Column, lay_out
from clt_lightning.core.terminal import line_width

if TYPE_CHECKING:
    from clt_lightning.analysis.dense import DenseResult
    from clt_lightning.analysis.probes import ProbeResult
    from clt_lightning.analysis.run import Run

_SOURCES = ("embedding", "features", "reconstruction", "codes")
_SHOWN = 5
#: Options that a dense read-out does not have
_OF_CLASSES = {"pool": "mean", "head": "probe"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `probe`."""
    add_run_options(parser)
    parser.add_argument(
        "--of",
        action="append",
        choices=_SOURCES,
        help="what the probe of classes reads; repeatable: embedding (the pooled one; the default), or of one layer of "
        "the transcoder features (what it rebuilds), reconstruction or codes",
    )
    add_pool(parser, "one vector")
    parser.add_argument(
        "--layer", type=int, default=-1, help="layer of the transcoder; negative ones count from the end (default: -1)"
    )
    add_sparse(parser, (), "also k-sparse probes, which read so many columns alone: --sparse 1,5,20")
    parser.add_argument(
        "--dense",
        action="append",
        default=[],
        choices=("shape", "depth", "position"),
        help="read every patch in the place of the image; repeatable: shape, depth or position (how far the object's "
        "middle is), which the demo's renders know",
    )
    parser.add_argument(
        "--images",
        type=int,
        help="images of each split, evenly spaced (default: 20,000, or 500 for --dense, whose every patch counts)",
    )
    parser.add_argument(
        "--head",
        choices=("probe", "classifier", "none"),
        default="probe",
        help="what a backbone without a text tower takes class logits from after this command: the probe of its "
        "embedding (default), the model's own classifier, or what it took them from before",
    )


def run(args: argparse.Namespace) -> None:
    """Learns, measures, prints and saves.

    Raises:
        UserError: no labels, one class, no such layer, or dense targets of other data than the demo's.
    """
    from clt_lightning.analysis import open_run
    from clt_lightning.runs.folder import RunFolder

    check_least(args, images=1)
    if args.dense and not args.of:
        refuse_given(args, _OF_CLASSES, "is of the probe of classes, which --dense takes the place of: give --of too")
    opened = open_run(args.run, **run_options(args))
    found: dict[str, Any] = {}
    if args.dense:
        found["dense"] = [_dense(opened, args, what).to_json() for what in dict.fromkeys(args.dense)]
    if args.of or not args.dense:
        found["classes"] = [result.to_json() for result in _classes(opened, args)]
    path = RunFolder(opened.folder).path / "probe" / "results.json"
    write_json(path, (read_json(path) if path.is_file() else {}) | found)
    print(f"wrote {path}")


def _classes(opened: Run, args: argparse.Namespace) -> list[ProbeResult]:
    from clt_lightning.analysis.probes import probe_head, probe_images

    names = _names(opened)
    sources = list(dict.fromkeys(args.of or ["embedding"]))
    if args.head == "classifier":
        _own_classifier(opened, names, args.images)
    limit = args.images or 20_000
    splits = {name: opened.batches(name, limit) for name in ("train", "val", "test")}
    results = probe_images(
        opened.clip, opened.transcoder, splits, len(names), sources, args.pool, args.layer, args.sparse
    )
    n = results[0].n
    print(f"linear probes of {len(names)} classes: {n['train']:,} training, {n['val']:,} validation images\n")
    print("\n".join(_class_table(results, line_width())))
    print(f"\naccuracy on {n['test']:,} test images; the regularisation was chosen on the validation images")
    whole = next((result for result in results if result.source == "embedding"), None)
    if args.head == "probe" and whole is not None and not opened.clip.has_text:
        path = probe_head(opened.clip, whole, names).save(opened.folder)
        print(f"wrote {path}: `test`, `serve`, `graph`, `steer` and `report` take class logits from it")
    return results


def _own_classifier(opened: Run, names: list[str], images: int | None) -> None:
    from clt_lightning.analysis.probes import classifier_head

    if opened.clip.has_text:
        raise UserError("--head classifier: this backbone has a text tower and takes class logits from that")
    head, agreement = classifier_head(opened.clip, opened.batches("val", images or 2_000), names)
    path = head.save(opened.folder)
    print(
        f"wrote {path}: the model's own classifier, on unit embeddings; it names its class on {agreement:.1%} of images"
    )


def _dense(opened: Run, args: argparse.Namespace, what: str) -> DenseResult:
    from clt_lightning.analysis.dense import demo_target, read_out
    from clt_lightning.data import Demo

    data = opened.datamodule
    if not isinstance(data, Demo):
        raise UserError(
            f"--dense {what}: only the demo's renders know it; for other data give a target in Python "
            "(clt_lightning.analysis.dense.read_out, docs/probes.md)"
        )
    if data.spurious is not None:
        raise UserError(f"--dense {what}: the maps are known of the demo's plain renders only, not with a planted cue")
    limit, size = args.images or 500, data.parameters["size"]
    splits: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    classes: list[str] | None = None
    for split in ("train", "val", "test"):
        targets[split], classes = demo_target(opened.clip, data.parameters["render_seeds"][split], size, what)
        splits[split] = _with_split(opened.batches(split, limit), split)
    result = read_out(
        opened.clip,
        opened.transcoder,
        splits,
        lambda batch: targets[batch["split"]](batch),
        what,
        classes,
        args.layer,
        args.sparse,
    )
    n = result.n
    print(f"{what} at every patch, layer {result.layer}: {n['train']:,} training, {n['test']:,} test patches\n")
    print("\n".join(_dense_table(result, line_width())))
    print("\nswapped: the read-out of the features, given the reconstruction in their place")
    told = ", ".join(f"{feature} ({value:+.2f})" for feature, value in result.strongest(_SHOWN))
    print(f"features whose maps go with {what} most (rank correlation over patches): {told}")
    if result.classes is not None:
        best = [f"{name} {f} ({value:+.2f})" for name in result.classes for f, value in result.strongest(1, name)]
        print(f"and with each class of it: {', '.join(best)}")
    print()
    return result


def _with_split(batches: Iterator[dict[str, Any]], split: str) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield {**batch, "split": split}


def _class_table(results: list[ProbeResult], width: int) -> list[str]:
    names = [
        " ".join(filter(None, [r.source, None if r.layer is None else f"layer {r.layer}", r.pool])) for r in results
    ]
    columns = [
        Column("k", ["all" if r.k is None else f"{r.k:,}" for r in results], 6),
        Column("of", [f"{r.width:,}" for r in results], 8),
        Column("top-1 %", [f"{100 * r.test.value:.2f}" for r in results], 10),
        Column("95 % interval", [f"{100 * r.test.low:.2f} .. {100 * r.test.high:.2f}" for r in results], 17),
        Column("mean recall %", [f"{100 * r.mean_recall:.2f}" for r in results], 15),
    ]
    return lay_out(Column("what is read", names, left=True), columns, width)


def _dense_table(result: DenseResult, width: int) -> list[str]:
    rows = result.read_outs
    columns = [
        Column("k", ["all" if r.k is None else f"{r.k:,}" for r in rows], 6),
        Column("of", [f"{r.width:,}" for r in rows], 8),
    ]
    if result.classes is None:
        columns += [
            Column("R2", [f"{r.r2:.3f}" for r in rows], 8),
            Column("rank correlation", [f"{r.rank_correlation:.3f}" for r in rows], 18),
        ]
    else:
        intervals = [r.accuracy for r in rows if r.accuracy is not None]
        columns += [
            Column("accuracy %", [f"{100 * a.value:.2f}" for a in intervals], 12),
            Column("95 % interval", [f"{100 * a.low:.2f} .. {100 * a.high:.2f}" for a in intervals], 17),
            Column("mean recall %", [f"{100 * (r.mean_recall or 0):.2f}" for r in rows], 15),
        ]
    return lay_out(Column("what is read", [r.name for r in rows], left=True), columns, width)


def _names(opened: Run) -> list[str]:
    opened.datamodule.setup("test")
    names = opened.datamodule.classnames
    if not names:
        raise UserError("the run's data have no class names: a probe needs labels (data.init_args.classnames)")
    if len(names) < 2:
        raise UserError("the run's data have one class: a probe needs two to tell apart")
    return list(names)
