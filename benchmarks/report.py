"""Time, size and memory of a report, on a made-up run of any size.

    python -m benchmarks.report                                 # 12 x 6144 features, 10,000 images
    python -m benchmarks.report --layers 4 --features 768 --images 2000

The made-up run (made by the tests' own generator) is written first, in a process of its own, so that the memory stated
is the report's. Its features are active on a fifth of the patches of their top images, and every image is drawn at the
thumbnail's size: reading and decoding the real data come on top.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--features", type=int, default=6144, help="features a layer")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--grid", type=int, default=7, help="patches a side: 7 for ViT-B/32, 14 for ViT-B/16")
    parser.add_argument("--folder", type=Path, help="where the run goes and stays (default: a temporary folder)")
    parser.add_argument("--only_make", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_make:
        from tests.report.made import make_run

        make_run(args.folder, args.layers, args.features, args.images, args.grid)
        return
    if args.folder is not None:
        measure(args, args.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


def measure(args: argparse.Namespace, folder: Path) -> None:
    from clt_lightning.analysis.features import load_features
    from clt_lightning.report import build_report
    from tests.report.made import MadePictures

    started = time.perf_counter()
    sizes = [f"--{name}={getattr(args, name)}" for name in ("layers", "features", "images", "grid")]
    subprocess.run([sys.executable, __file__, *sizes, f"--folder={folder}", "--only_make"], check=True)
    run = folder / "made" / "version_0"
    print(f"made-up run: {disk(run) / 1e6:,.0f} MB in {time.perf_counter() - started:.0f} s")

    before = peak()
    pictures = MadePictures(load_features(run), size=128)
    busy = time.process_time()
    built = build_report(run, pictures=pictures)
    busy = time.process_time() - busy
    print(f"report: {built.seconds:.0f} s ({busy:.0f} s of CPU), {built.bytes / 1e6:,.0f} MB, {built.files:,} files")
    print(f"memory: {before} before, {peak()} at the peak")
    report = built.index.parent
    for part in ("data/cards", "data/crops", "data/images", "data/layers", "thumbs", "figures", "tables"):
        files = [path for path in (report / part).rglob("*") if path.is_file()]
        largest = max((path.stat().st_size for path in files), default=0)
        size = disk(report / part) / 1e6
        print(f"  {part:<12} {size:8,.1f} MB in {len(files):6,} files, largest {largest / 1e3:,.0f} kB")


def disk(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak() -> str:
    """Largest resident memory of this process so far, for people."""
    from clt_lightning.core.memory import peak_resident

    found = peak_resident()
    return "n/a" if found is None else f"{found / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
