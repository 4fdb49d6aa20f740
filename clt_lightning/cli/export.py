"""`export`: a trained transcoder as files for others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json
from clt_lightning.core.paths import expand
from clt_lightning.core.people import count, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `export`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--run",
        type=Path,
        help="run, e.g. runs/quickstart (its newest finished version); its transcoder/ is read",
    )
    source.add_argument("--ckpt_path", help="a Lightning checkpoint instead of a run folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--format",
        choices=("pretrained", "circuit-tracer"),
        default="pretrained",
        help="pretrained: config.json + model.safetensors, what from_pretrained reads; "
        "circuit-tracer: W_enc_<l>.safetensors, W_dec_<l>.safetensors and config.yaml "
        "(ReLU, JumpReLU, BatchTopK; without skip)",
    )


def run(args: argparse.Namespace) -> None:
    """Writes the files.

    Raises:
        UserError: nothing to read, or an activation that the format cannot express.
    """
    from clt_lightning.runs.folder import find_run
    from clt_lightning.transcoder import CrossLayerTranscoder

    metadata: dict[str, Any] = {}
    if args.ckpt_path is not None:
        from clt_lightning.module import CLTModule

        path = expand(args.ckpt_path, "--ckpt_path")
        print(f"reading {path}", flush=True)
        module = CLTModule.load_from_checkpoint(path, map_location="cpu")
        clt, metadata = module.transcoder, {"clip": module.clip.describe()}
    else:
        folder = find_run(args.run).transcoder
        if not folder.is_dir():
            raise UserError(
                f"--run {args.run}: holds no transcoder/ folder; did fit finish? (--ckpt_path takes a checkpoint)"
            )
        print(f"reading {folder}", flush=True)
        clt = CrossLayerTranscoder.from_pretrained(folder)
        metadata = read_json(folder / "config.json").get("metadata", {})
    print(f"writing {count(sum(p.numel() for p in clt.parameters()))} weights to {args.output}", flush=True)
    if args.format == "pretrained":
        clt.save_pretrained(args.output, metadata)
    else:
        from clt_lightning.transcoder.circuit_tracer import save_circuit_tracer

        save_circuit_tracer(clt, args.output, metadata)
    print(f"wrote {args.output} ({size(sum(path.stat().st_size for path in args.output.iterdir()))})")
