"""`attention`: what stands in the place of attention, trained on a run's data, and what it is worth beside its CLT."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clt_lightning.cli.arguments import add_run_options, run_options
from clt_lightning.cli.options import add_output, add_seed, check_least, file_option, refuse_given
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import write_json
from clt_lightning.core.paths import expand
from clt_lightning.core.table import Column, lay_out
from clt_lightning.core.terminal import line_width

if TYPE_CHECKING:
    from clt_lightning.analysis import Run
    from clt_lightning.analysis.intervals import Interval
    from clt_lightning.analysis.sparse_attention import AttentionReport


#: Options that mean something with --train alone
_OF_TRAINING: dict[str, Any] = {
    "kind": "units",
    "site": "attn_out",
    "n_features": None,
    "d_qk": None,
    "k": 32,
    "lr": 1e-3,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `attention`."""
    add_run_options(parser)
    parser.add_argument(
        "--units",
        required=True,
        metavar="FOLDER",
        help="folder of the sparse attention, or of an autoencoder at attn_out or attn_z of all blocks; --train "
        "writes it",
    )
    parser.add_argument("--train", type=int, metavar="STEPS", help="train it first, on the run's training images")
    parser.add_argument(
        "--kind",
        choices=("units", "autoencoder"),
        default=_OF_TRAINING["kind"],
        help="with --train: units, which read the stream at the keys, or an autoencoder of what attention adds "
        "(default: units)",
    )
    parser.add_argument(
        "--site",
        choices=("attn_out", "attn_z"),
        default=_OF_TRAINING["site"],
        help="with --train --kind autoencoder: what it reads and rebuilds: what the attention adds, or the heads' "
        "outputs before the output projection (default: attn_out)",
    )
    parser.add_argument(
        "--n_features", type=int, help="with --train: units of a layer, a multiple of the heads (default: 8 x d_model)"
    )
    parser.add_argument(
        "--k", type=int, default=_OF_TRAINING["k"], help="with --train: units active at a query position (default: 32)"
    )
    parser.add_argument(
        "--d_qk",
        type=int,
        help="with --train: size of queries and keys of the units' own (default: the model's own patterns, frozen)",
    )
    parser.add_argument(
        "--lr", type=float, default=_OF_TRAINING["lr"], help="with --train: learning rate (default: 0.001)"
    )
    parser.add_argument("--split", default="test", help="split that it is measured on (default: test)")
    parser.add_argument("--images", type=int, metavar="N", help="images of it, evenly spaced (default: all)")
    add_seed(parser, "of the training and of the intervals")
    add_output(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")


def run(args: argparse.Namespace) -> None:
    """Trains where asked, measures, prints and writes.

    Raises:
        UserError: no such run or units, or settings that do not go together.
    """
    units = Path(expand(args.units, "--units"))
    output = file_option(args.output)
    check_least(args, train=1, images=1)
    if args.train is None:
        refuse_given(args, _OF_TRAINING, "makes new units: give --train STEPS too")
    if args.train is not None and units.exists() and (not units.is_dir() or any(units.iterdir())):
        raise UserError(f"--units {units} is there already: name a folder that is not, or leave --train out")

    from clt_lightning.analysis import open_run
    from clt_lightning.analysis.sparse_attention import measure
    from clt_lightning.transcoder.attention import load_attention

    device = args.device
    opened = open_run(args.run, device, **run_options(args))
    if args.train is not None:
        _train(opened, args, device).save_pretrained(units, {"run": opened.folder.name, "steps": args.train})
        print(f"wrote {units}")
    attention = load_attention(units, device, trust=args.trust_config)
    found = measure(opened, attention, split=args.split, limit=args.images, seed=args.seed, progress=True)
    print("\n".join(lines(found, line_width())))
    if output is not None:
        write_json(output, found.to_json())
        print(f"wrote {output}")


def _train(opened: Run, args: argparse.Namespace, device: str) -> Any:
    import lightning

    from clt_lightning.analysis.tower import at_all_mlps
    from clt_lightning.callbacks import ProgressLine
    from clt_lightning.training.attention import AttentionConfig, AttentionModule
    from clt_lightning.training.optim import AdamW
    from clt_lightning.transcoder import TopK

    n_features = 8 * opened.clip.d_model if args.n_features is None else args.n_features
    lightning.seed_everything(args.seed, verbose=False)
    module = AttentionModule(
        opened.clip,
        AttentionConfig(n_features, TopK(args.k), args.d_qk, kind=args.kind, site=args.site),
        optimizer=lambda params: AdamW(params, lr=args.lr),
        transcoder=opened.transcoder if at_all_mlps(opened.clip, opened.transcoder) else None,
        seed=args.seed,
    )
    trainer = lightning.Trainer(
        max_steps=args.train,
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1 if ":" not in device else [int(device.partition(":")[2])],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=10,
        callbacks=[ProgressLine()],
    )
    trainer.fit(module, datamodule=opened.datamodule)
    return module.attention.eval()


def lines(found: AttentionReport, width: int | None = None) -> list[str]:
    """What the terminal says."""
    from clt_lightning.analysis.attention_units import UnitsResult
    from clt_lightning.callbacks.evaluate import unit_lines

    out = [f"{found.images:,} images of {found.split}: attn_out from the untouched model", ""]
    out += unit_lines(UnitsResult({"fvu": {"all": found.fvu}, "l0": {"all": found.l0}}, found.spans), width)
    names = list(found.top1)
    out += ["", "replaced in cascade", ""]
    cells = [_points(found.top1[name], 1) for name in names]
    lost = [_points(found.lost[name], 1) if name != "original" else "" for name in names]
    out += lay_out(
        Column("in the model's place", names, left=True),
        [Column("top-1 %", cells, 22), Column("points lost", lost, 22)],
        width,
    )
    return out


def _points(value: Interval, digits: int) -> str:
    low, high = 100 * value.low, 100 * value.high
    return f"{100 * value.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
