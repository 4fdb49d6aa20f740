"""`compare`: which features of two or more runs are the same, against chance."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clt_lightning.cli.options import add_output, add_seed, file_option
from clt_lightning.core.files import write_json
from clt_lightning.core.table import Column, lay_out
from clt_lightning.core.terminal import line_width

if TYPE_CHECKING:
    from clt_lightning.analysis.stability import Comparison
    from clt_lightning.analysis.stability.groups import Anchors, Group


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `compare`."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="two or more run folders, e.g. runs/quickstart/version_0 (runs/quickstart: its newest finished version), "
        "or folders of transcoders; firing rates come from `test`",
    )
    parser.add_argument(
        "--kept",
        type=float,
        default=0.7,
        help="least cosine, of what they write and of what they read, of each other's nearest features that count as "
        "one (default: 0.7; never below what 99 %% of the features reach by chance)",
    )
    parser.add_argument(
        "--near",
        type=float,
        default=0.5,
        help="least cosine of a feature that is near to one with a nearer partner (default: 0.5)",
    )
    parser.add_argument(
        "--assignment",
        choices=("auto", "hungarian", "greedy"),
        default="auto",
        help="one-to-one matching of PW-MCC: hungarian is the best there is, greedy takes the largest cosines first; "
        "auto (default) is hungarian up to 8,192 features per layer",
    )
    add_seed(parser, "seed of the nulls and of the intervals")
    add_output(parser, "write all numbers there as JSON (docs/results-schema.md)")
    parser.add_argument(
        "--arrays", type=Path, help="write there, as npz, what every feature of each run has in each other run"
    )
    parser.add_argument(
        "--trust_config",
        action="store_true",
        help="let a run name an activation beyond clt_lightning, lightning and torch, and run its code",
    )


def run(args: argparse.Namespace) -> None:
    """Compares, prints and writes.

    Raises:
        UserError: fewer than two runs, or runs that cannot be compared.
    """
    from clt_lightning.analysis.stability import compare

    output, arrays = file_option(args.output), file_option(args.arrays, "--arrays")
    found = compare(
        args.runs,
        kept=args.kept,
        near=args.near,
        assignment=args.assignment,
        seed=args.seed,
        progress=True,
        trust=args.trust_config,
    )
    print("\n".join(lines(found, line_width())))
    if output is not None:
        write_json(output, found.to_json())
        print(f"wrote {output}")
    if arrays is not None:
        from clt_lightning.core.arrays import write_arrays

        write_arrays(arrays, found.arrays())
        print(f"wrote {arrays}")


def lines(found: Comparison, width: int | None = None) -> list[str]:
    """What the terminal says."""
    titles = [entry.title for entry in found.members]
    out = [f"{number}  {title}" for number, title in enumerate(titles)]
    unknown = [entry.title for entry in found.members if entry.rates is None]
    if unknown:
        told = f"{', '.join(unknown)}: firing rates are not known (`python -m clt_lightning test --run RUN`): "
        out.append(f"{told}all features count as alive, and there are no bins of rates")
    out += ["", *_pairs(found, width), "", *_meaning(found)]
    for title, table in (
        ("by the share of tokens on which a feature fires", _rates),
        ("features that are not found again, as a group", _subspaces),
        ("features that write to one layer (anchors) against the others", _anchors),
        ("features that alone write to some coordinates (anchors, too) against the others", _coordinates),
    ):
        rows = table(found, width)
        if rows:
            out += ["", f"{title}:", *rows]
    if len(titles) > 2:
        out += ["", *_found_in(found, width)]
    return out


def _pairs(found: Comparison, width: int | None) -> list[str]:
    numbers = [pair.numbers() for pair in found.pairs]
    labels = [f"{pair.a} - {pair.b}" for pair in found.pairs]
    differ = [_differ(pair.differ) for pair in found.pairs]
    mean = found.mean()
    if len(found.pairs) > 1:
        labels.append("mean")
        numbers.append({name: spread.value for name, spread in mean.items()})
        differ.append("")
    if len(found.pairs) > 1 and not _nan(mean["kept"].low):
        for label, end in (("95 % from", "low"), ("95 % to", "high")):
            labels.append(label)
            numbers.append({name: getattr(spread, end) for name, spread in mean.items()})
            differ.append("")
    nulls = [pair.nulls() for pair in found.pairs]
    for label, name in (("chance: untrained", "untrained"), ("chance: mixed rows", "mixed")):
        labels.append(label)
        means = {what: _mean([null[name][what] for null in nulls]) for what in ("mmcs_both", "mcc_both")}
        numbers.append(means)
        differ.append("")
    columns = [Column("kept %", [_percent(row.get("kept")) for row in numbers], 8)]
    for name in ("mcc", "mmcs"):
        for kind in ("decoder", "encoder", "both"):
            cells = [_number(row.get(f"{name}_{kind}")) for row in numbers]
            columns.append(Column(kind, cells, 8, group={"mcc": "PW-MCC", "mmcs": "MMCS"}[name]))
    columns.append(Column("they differ in", differ, left=True))
    return lay_out(Column("runs", labels, left=True), columns, width)


def _meaning(found: Comparison) -> list[str]:
    ways = {layer.assignment for pair in found.pairs for layer in pair.layers}
    how = {"hungarian": "the best one-to-one matching", "greedy": "one to one, largest cosines first"}
    out = [
        "kept: each other's nearest in both, of all features that fire; PW-MCC: mean cosine of "
        f"{' or '.join(how[way] for way in sorted(ways))}; MMCS: of each one's nearest"
    ]
    known = [pair.differ for pair in found.pairs if pair.differ is not None]
    if known and ["data order"] not in known:
        out.append(
            "no two of these differ in the data order alone: such a pair (fit again with another "
            "--data.init_args.seed and the same --model.seed) says how alike runs can be"
        )
    return out


def _rates(found: Comparison, width: int | None) -> list[str]:
    bins: dict[tuple[float, float], list[Group]] = {}
    for pair in found.pairs:
        for rates in pair.rates:
            for low, high, group in [] if rates is None else rates.bins:
                bins.setdefault((low, high), []).append(group)
    if not bins:
        return []
    keys = sorted(bins)
    return lay_out(
        Column("tokens", [f"{100 * low:g} .. {100 * high:g} %" for low, high in keys], left=True),
        _of_groups([bins[key] for key in keys]),
        width,
    )


def _anchors(found: Comparison, width: int | None) -> list[str]:
    sides = [side for pair in found.pairs for side in pair.anchors if side is not None]
    return _against(sides, ["one layer", "several"], width)


def _coordinates(found: Comparison, width: int | None) -> list[str]:
    sides = [side for pair in found.pairs for side in pair.coordinates if side is not None]
    return _against(sides, ["own coordinates", "none of their own"], width)


def _against(known: list[Anchors], names: list[str], width: int | None) -> list[str]:
    if not any(side.anchors.features for side in known):
        return []
    groups = [[side.anchors for side in known], [side.others for side in known]]
    out = lay_out(Column("features", names, left=True), _of_groups(groups), width)
    equal = [side.at_equal_rates.value for side in known if not _nan(side.at_equal_rates.value)]
    if equal:
        out.append(f"anchors minus others at equal firing rates: {100 * _mean(equal):+.1f} points of the share kept")
    return out


def _of_groups(rows: list[list[Group]]) -> list[Column]:
    def weighted(groups: list[Group], name: str) -> float:
        total = sum(group.features for group in groups)
        return sum(getattr(g, name) * g.features for g in groups if g.features) / total if total else float("nan")

    totals = [sum(group.features for group in groups) for groups in rows]
    kept = [sum(group.kept for group in groups) for groups in rows]
    return [
        Column("features", [f"{n:,}" for n in totals], 10),
        Column("kept %", [_percent(k / n if n else None) for k, n in zip(kept, totals)], 8),
        *(
            Column(kind, [_number(weighted(groups, kind)) for groups in rows], 9, group="cosine with the nearest")
            for kind in ("decoder", "encoder", "both")
        ),
    ]


def _subspaces(found: Comparison, width: int | None) -> list[str]:
    labels, rows = [], []
    for layer in range(found.members[0].transcoder.n_layers):
        for kind in ("decoder", "encoder"):
            parts = [pair.subspaces[layer][kind] for pair in found.pairs]
            known = [part.unstable for part in parts if part.unstable is not None]
            control = [part.control.overlap for part in parts if part.control is not None]
            if known:
                labels.append(f"layer {layer}, {kind}s")
                means = [_mean([getattr(o, name) for o in known]) for name in ("dimension", "width", *_OVERLAP)]
                rows.append((*means, _mean(control)))
    if not rows:
        return []
    columns = [
        Column("dimension", [f"{row[0]:.0f} of {row[1]:.0f}" for row in rows], 13),
        *(Column(title, [_number(row[2 + i]) for row in rows], 9) for i, title in enumerate(("overlap", "chance"))),
        Column("with kept", [_number(row[-1]) for row in rows], 10),
        Column("a feature in the group", [_number(row[4]) for row in rows], 23),
        Column("in the nearest", [_number(row[5]) for row in rows], 15),
    ]
    return lay_out(Column("", labels, left=True), columns, width)


_OVERLAP = ("overlap", "chance", "explained", "single")


def _found_in(found: Comparison, width: int | None) -> list[str]:
    others = len(found.members) - 1
    counts = [found.found_in(number) for number in range(others + 1)]
    columns = [
        Column(f"{n}", [f"{int((count == n).sum()):,}" for count in counts], 9, group="kept in n others")
        for n in range(others + 1)
    ]
    return lay_out(Column("run", [str(n) for n in range(others + 1)], left=True), columns, width)


def _differ(names: Any) -> str:
    if names is None:
        return "(not known)"
    return ", ".join(names) or "nothing"


def _nan(value: float | None) -> bool:
    return value is None or value != value


def _mean(values: list[float]) -> float:
    known = [value for value in values if not _nan(value)]
    return sum(known) / len(known) if known else float("nan")


def _number(value: float | None) -> str:
    return "-" if value is None or _nan(value) else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None or _nan(value) else f"{100 * value:.1f}"
