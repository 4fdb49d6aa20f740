"""A mutation run: small wrong changes of the package, one at a time, and whether the tests of that part notice.

    python -m tests.mutation --n 200 --seed 0 --out mutations.json  # a sample: hours, so start it with nice
    python -m tests.mutation --again mutations.json                 # once more what survived
    python -m tests.mutation --file clt_lightning/module.py --n 50  # of one file

Every mutation is made in a copy of the tree and judged by the tests of `TESTS` alone, in one process with one thread.
Survivors are a missing test, or change nothing that can be seen: those are listed with the reason in equivalent.yaml,
by the text of the line, and are left out of the score.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.mutation.operators import Mutation, mutations

ROOT = Path(__file__).parents[2]
_TRANSCODER = [
    *(f"tests/transcoder/test_{name}.py" for name in ("losses", "clt", "activations", "paths", "buffers", "codes")),
    *(f"tests/transcoder/test_{name}.py" for name in ("feature_chunks", "precision")),
]
_MODULE = [f"tests/module/test_{name}.py" for name in ("chunks", "step", "module")]
_ANALYSIS = [
    *(f"tests/analysis/test_{name}.py" for name in ("statistics", "contributions", "faithfulness", "features")),
    *(f"tests/analysis/test_{name}.py" for name in ("tower", "image", "steering", "evaluate")),
]
#: what is changed, and the tests that have to notice, the fast ones first
TESTS: dict[str, list[str]] = {
    **{
        f"clt_lightning/transcoder/{name}.py": [
            *_TRANSCODER,
            "tests/module/test_chunks.py",
            "tests/module/test_step.py",
        ]
        for name in (
            *("clt", "encoders", "codes", "sparse", "activations", "losses", "normalization", "chunked"),
            *("reference", "feature_chunks"),
        )
    },
    "clt_lightning/module.py": [*_MODULE, "tests/module/test_training.py"],
    "clt_lightning/cascade.py": ["tests/module/test_step.py"],
    "clt_lightning/replacement.py": ["tests/module/test_step.py", *_ANALYSIS],
    **{
        f"clt_lightning/metrics/{name}.py": ["tests/metrics"]
        for name in ("base", "codes", "reconstruction", "tokens", "zero_shot")
    },
    **{
        f"clt_lightning/analysis/{name}.py": _ANALYSIS
        for name in (
            *("faithfulness", "contributions", "decomposition", "intervals", "statistics", "population", "evaluate"),
            *("features", "retrieval", "collector", "steering"),
        )
    },
}
#: imported once, before the first fork: half of a run's time otherwise
PRELOADED = ("torch", "torch.distributed", "lightning.pytorch", "lightning.pytorch.cli", "open_clip", "torchmetrics")
PRELOADED += ("tensorboard.backend.event_processing.event_accumulator", "webdataset", "hypothesis", "pytest")
PRELOADED += ("hypothesis.extra.numpy", "matplotlib.pyplot", "tqdm.auto", "huggingface_hub", "torchvision.transforms")
_COPIED = ("clt_lightning", "tests", "configs", "docs", "examples", "pyproject.toml", "README.md")


@dataclass(frozen=True)
class Place:
    """A mutation of a file."""

    file: str
    mutation: Mutation

    def record(self) -> dict[str, Any]:
        m = self.mutation
        return {"file": self.file, "line": m.line, "operator": m.operator, "before": m.before, "after": m.after}


class Runner:
    """Runs tests against changed copies of the tree, each in a fork of this process.

    Args:
        tree: a copy of the tree.
    """

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.log = tree / "pytest.log"
        self._seconds: dict[tuple[str, ...], float] = {}
        for name in PRELOADED:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        import torch

        torch.set_num_threads(1)

    def limit(self, tests: tuple[str, ...]) -> float:
        """Seconds that these tests may take; they are run once on the unchanged tree.

        Raises:
            RuntimeError: they fail as they are.
        """
        if tests not in self._seconds:
            start = time.monotonic()
            if self._run(tests, 1800) != 0:
                raise RuntimeError(f"the tests fail on the unchanged tree: {self.log.read_text()[-3000:]}")
            self._seconds[tests] = time.monotonic() - start
            print(f"{len(tests)} test files take {self._seconds[tests]:.0f} s", flush=True)
        return 60 + 4 * self._seconds[tests]

    def judge(self, place: Place) -> str:
        """`killed`, `timeout` or `survived`."""
        tests = tuple(t for t in TESTS[place.file] if (self.tree / t).exists())
        limit = self.limit(tests)
        path = self.tree / place.file
        source = path.read_text(encoding="utf-8")
        try:
            path.write_text(place.mutation.apply(source), encoding="utf-8")
            code = self._run(tests, limit)
        finally:
            path.write_text(source, encoding="utf-8")
        return {0: "survived", None: "timeout"}.get(code, "killed")

    def _run(self, tests: tuple[str, ...], limit: float) -> int | None:
        """Exit code of pytest; None past the limit."""
        pid = os.fork()
        if pid == 0:
            os._exit(self._child(tests))
        end = time.monotonic() + limit
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                _kill_group(pid)  # what the tests have started and left
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        _kill_group(pid)
        os.waitpid(pid, 0)
        return None

    def _child(self, tests: tuple[str, ...]) -> int:
        os.setsid()
        log = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(self.tree)
        for name in [n for n in sys.modules if n.split(".")[0] in ("tests", "clt_lightning")]:
            del sys.modules[name]
        sys.path[:] = [str(self.tree), *(p for p in sys.path if p and Path(p).resolve() != ROOT)]
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-seed=0"]
        return int(pytest.main([*options, f"--basetemp={self.tree / 'tmp'}", *tests]))


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@contextlib.contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of what the tests need, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder)
        yield Path(folder)


def known_equivalents() -> dict[tuple[str, str, str], str]:
    """Reasons by (file, line before, line after)."""
    path = Path(__file__).with_name("equivalent.yaml")
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {(e["file"], e["before"], e["after"]): e["why"] for e in entries or []}


def places(files: list[str]) -> list[Place]:
    """Every mutation of some files."""
    return [Place(file, m) for file in files for m in mutations((ROOT / file).read_text(encoding="utf-8"))]


def run(chosen: list[Place], out: Path | None) -> list[dict[str, Any]]:
    """Judges mutations one after the other; what is known already is written after each."""
    equivalent = known_equivalents()
    records: list[dict[str, Any]] = []
    with copied_tree() as tree:
        runner = Runner(tree)
        for number, place in enumerate(chosen, 1):
            start = time.monotonic()
            record = place.record()
            why = equivalent.get((place.file, record["before"], record["after"]))
            record["outcome"] = runner.judge(place) if why is None else "equivalent"
            record["seconds"] = round(time.monotonic() - start, 1)
            records.append(record)
            print(f"{number}/{len(chosen)} {record['outcome']:10} {record['seconds']:6.1f} s", end="  ")
            print(f"{place.file}:{record['line']} {record['operator']}", flush=True)
            if record["outcome"] == "survived":
                print(f"    - {record['before']}\n    + {record['after']}", flush=True)
            if out is not None:
                out.write_text(json.dumps(records, indent=1), encoding="utf-8")
    return records


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="mutations drawn, all alike likely; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--file", action="append", choices=sorted(TESTS), metavar="FILE", help="only of this file")
    parser.add_argument("--again", type=Path, help="records of an earlier run: judge what survived once more")
    parser.add_argument("--list", action="store_true", help="print what would be run")
    parser.add_argument("--out", type=Path, help="JSON file for the records")
    arguments = parser.parse_args()
    chosen = places(sorted(arguments.file or TESTS))
    total = len(chosen)
    if arguments.again is not None:
        keys = ("file", "before", "after")
        wanted = Counter(
            tuple(r[k] for k in keys) for r in json.loads(arguments.again.read_text()) if r["outcome"] == "survived"
        )
        chosen = [p for p in chosen if wanted[tuple(p.record()[k] for k in keys)] > 0]
    elif arguments.n:
        chosen = random.Random(arguments.seed).sample(chosen, min(arguments.n, total))
        chosen.sort(key=lambda p: (p.file, p.mutation.start))
    print(f"{len(chosen)} of {total} mutations", flush=True)
    if arguments.list:
        for place in chosen:
            print(json.dumps(place.record()))
        return 0
    records = run(chosen, arguments.out)
    outcomes = Counter(r["outcome"] for r in records)
    judged = len(records) - outcomes["equivalent"]
    noticed = judged - outcomes["survived"]
    print(", ".join(f"{number} {name}" for name, number in sorted(outcomes.items())))
    print(f"score: {noticed} of {judged} noticed ({noticed / max(judged, 1):.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
