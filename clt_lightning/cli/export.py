"""`export`: a trained transcoder as files for others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json
from clt_lightning.core.paths import expand
from clt_lightning.core.people import count, size

if TYPE_CHECKING:
    from clt_lightning.transcoder import CrossLayerTranscoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `export`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--run",
        type=Path,
        help="run, e.g. runs/quickstart (its newest finished version); its transcoder/ is read",
    )
    source.add_argument("--ckpt_path", help="a Lightning checkpoint instead of a run folder")
    source.add_argument(
        "--transcoder",
        type=Path,
        help="a folder of a transcoder instead: of this package, circuit-tracer, SAELens or Prisma",
    )
    parser.add_argument("--output", type=Path, help="folder to write")
    parser.add_argument(
        "--trust_config",
        action="store_true",
        help="let it name an activation beyond clt_lightning, lightning and torch, and run its code",
    )
    parser.add_argument(
        "--push",
        metavar="USER/NAME[/SUB]",
        help="upload to this repository of the Hugging Face Hub, with a card made from the run's results.json",
    )
    parser.add_argument("--revision", help="with --push: the branch, made if it is not there")
    parser.add_argument("--private", action="store_true", help="with --push: make a new repository private")
    parser.add_argument("--license", metavar="NAME", help="with --push: of the weights, e.g. apache-2.0")
    parser.add_argument(
        "--format",
        choices=("safetensors", "circuit-tracer", "sae-lens"),
        default="safetensors",
        help="safetensors: config.json + model.safetensors, what from_pretrained reads; circuit-tracer: what its "
        "load_clt or load_transcoder_set reads (ReLU, JumpReLU, BatchTopK); sae-lens: a folder a layer for "
        "SAE.load_from_disk (topology per_layer or sae). docs/interchange.md says what maps",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the tensors for circuit-tracer and sae-lens; lower ones change codes (default: float32)",
    )
    parser.add_argument(
        "--repo",
        metavar="ORG/NAME",
        help="hub repository where a circuit-tracer folder will lie: its `scan`, and the addresses of a set's files",
    )


def run(args: argparse.Namespace) -> None:
    """Writes the files.

    Raises:
        UserError: nothing to read, or an activation that the format cannot express.
    """
    from clt_lightning.runs.folder import find_run

    if args.output is None and args.push is None:
        raise UserError("nothing to do: give --output FOLDER, --push USER/NAME, or both")
    if args.push and args.format != "safetensors":
        raise UserError(
            f"--push uploads the files that from_pretrained reads; for --format {args.format} write a folder with "
            "--output (and --repo), and upload it with `hf upload USER/NAME FOLDER`"
        )
    clt, metadata = _read(args)
    if args.output is not None:
        _write(args, clt, metadata)
    if args.push is not None:
        results = find_run(args.run).path if args.run is not None else None
        options = {"metadata": metadata, "licence": args.license, "revision": args.revision}
        print(f"uploaded: {clt.push_to_hub(args.push, results=results, private=args.private or None, **options)}")


def _write(args: argparse.Namespace, clt: CrossLayerTranscoder, metadata: dict[str, Any]) -> None:
    import torch

    from clt_lightning.transcoder.files import FORMATS, export

    print(f"writing {count(sum(p.numel() for p in clt.parameters()))} weights to {args.output}", flush=True)
    if args.format == "safetensors":
        clt.save_pretrained(args.output, metadata)
    else:
        export(clt, args.output, args.format, metadata, getattr(torch, args.dtype), args.repo)
        for note in FORMATS[args.format].notes(clt):
            print(f"note: {note}")
    print(f"wrote {args.output} ({size(sum(p.stat().st_size for p in args.output.rglob('*') if p.is_file()))})")


def _read(args: argparse.Namespace) -> tuple[CrossLayerTranscoder, dict[str, Any]]:
    """The transcoder that was named, and what is known of it."""
    from clt_lightning.runs.folder import find_run
    from clt_lightning.transcoder import CrossLayerTranscoder

    if args.ckpt_path is not None:
        from clt_lightning.training.module import CLTModule

        path = expand(args.ckpt_path, "--ckpt_path")
        print(f"reading {path}", flush=True)
        module = CLTModule.load_from_checkpoint(path, map_location="cpu", trust=args.trust_config)
        return module.transcoder, {"clip": module.clip.describe()}
    if args.transcoder is not None:
        folder = Path(expand(args.transcoder, "--transcoder"))
        if not folder.is_dir():
            raise UserError(f"--transcoder {folder}: no such folder")
    else:
        folder = find_run(args.run).transcoder
        if not folder.is_dir():
            raise UserError(
                f"--run {args.run}: holds no transcoder/ folder; did fit finish? (--ckpt_path takes a checkpoint)"
            )
    print(f"reading {folder}", flush=True)
    clt = CrossLayerTranscoder.from_pretrained(folder, trust=args.trust_config)
    config = folder / "config.json"
    return clt, read_json(config).get("metadata", {}) if config.is_file() else {}
