"""A mutation run: small wrong changes of the package, one at a time, and whether the tests of that part notice.

    python -m tests.mutation --n 200 --seed 0 --out mutations.json  # a sample: hours, so start it with nice
    python -m tests.mutation --again mutations.json                 # once more what survived
    python -m tests.mutation --file clt_lightning/training/module.py --n 50  # of one file

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
import resource
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
_PATHS = ["tests/transcoder/test_paths.py", "tests/transcoder/test_clt.py"]
_STEP = ["tests/training/test_chunks.py", "tests/training/test_step.py"]
_LEARNS = ["tests/training/test_module.py", "tests/transcoder/test_training_paths.py"]
_EVALUATE = "tests/analysis/test_evaluate.py"
#: runs the same code twice, and takes long: where nothing is gathered from processes it notices no wrong number
_TWO_PROCESSES = f"{_EVALUATE}::test_two_processes_write_what_one_writes"


def _transcoder(*names: str) -> list[str]:
    return [*(f"tests/transcoder/test_{name}.py" for name in names), *_PATHS, *_STEP, *_LEARNS]


def _analysis(*names: str, gathers: bool = False) -> list[str]:
    left_out = [] if gathers else [f"--deselect={_TWO_PROCESSES}"]
    return [*(f"tests/analysis/test_{name}.py" for name in names), _EVALUATE, *left_out]


#: what is changed, and the tests that have to notice: its own ones first, the long ones last
TESTS: dict[str, list[str]] = {
    "clt_lightning/transcoder/clt.py": _transcoder("clt", "circuit_tracer"),
    "clt_lightning/transcoder/decoders.py": _transcoder("clt"),
    "clt_lightning/transcoder/saving.py": ["tests/transcoder/test_artefact.py", "tests/transcoder/test_hub.py"],
    "clt_lightning/transcoder/files/plain.py": ["tests/transcoder/test_interchange.py"],
    "clt_lightning/transcoder/files/circuit_tracer.py": ["tests/transcoder/test_interchange.py"],
    "clt_lightning/transcoder/files/sae_lens.py": ["tests/transcoder/test_interchange.py"],
    "clt_lightning/transcoder/files/prisma.py": ["tests/transcoder/test_interchange.py"],
    "clt_lightning/transcoder/encoders.py": _transcoder("precision", "buffers"),
    "clt_lightning/transcoder/codes.py": _transcoder("codes", "feature_chunks"),
    "clt_lightning/transcoder/pairs.py": _transcoder("codes", "feature_chunks", "order"),
    "clt_lightning/transcoder/sparse.py": [*_transcoder("buffers"), "tests/transcoder/test_triton.py"],
    **{
        f"clt_lightning/transcoder/activations/{name}.py": _transcoder("activations")
        for name in ("base", "relu", "topk", "abs_topk", "batch_topk", "jump_relu", "config")
    },
    **{
        f"clt_lightning/training/losses/{name}.py": ["tests/training/test_losses.py", *_transcoder()]
        for name in ("reconstruction", "l1", "tanh", "pre_activation", "auxk", "warmup", "weighed", "parts", "config")
    },
    "clt_lightning/transcoder/normalization.py": _transcoder(),
    "clt_lightning/transcoder/chunked.py": [*_STEP, *_LEARNS],
    "clt_lightning/transcoder/reference.py": _transcoder(),
    "clt_lightning/transcoder/feature_chunks.py": [
        *("tests/transcoder/test_feature_chunks.py", "tests/transcoder/test_triton.py"),
    ],
    **{
        f"clt_lightning/training/{name}.py": [
            *_STEP,
            *_LEARNS,
            "tests/training/test_training.py",
            "tests/parallel/test_fit.py",
        ]
        for name in ("module", "assembly", "capturing", "checkpointing", "evaluating", "preparation")
    },
    "clt_lightning/training/losses/cascade.py": _STEP[1:],
    "clt_lightning/interventions/replacement.py": [*_STEP[1:], *_analysis("tower", "steering", "faithfulness")],
    **{
        f"clt_lightning/metrics/{name}.py": [f"tests/metrics/test_{own}.py", "tests/metrics"]
        for name, own in (
            *(("base", "state"), ("codes", "codes"), ("reconstruction", "reconstruction")),
            *(("tokens", "tokens"), ("zero_shot", "zero_shot")),
        )
    },
    "clt_lightning/analysis/faithfulness.py": _analysis("faithfulness"),
    "clt_lightning/analysis/contributions.py": _analysis("contributions"),
    "clt_lightning/analysis/decomposition.py": _analysis("image"),
    "clt_lightning/analysis/last_residual.py": _analysis("image", "shares"),
    "clt_lightning/analysis/arms.py": _analysis("tower", "suite", "controls"),
    "clt_lightning/analysis/suite.py": _analysis("suite"),
    "clt_lightning/interventions/resume.py": _analysis("suite", "tower"),
    "clt_lightning/interventions/lanes.py": _analysis("suite", "tower", "effects"),
    "clt_lightning/analysis/intervals.py": _analysis("statistics"),
    "clt_lightning/analysis/statistics.py": _analysis("statistics"),
    "clt_lightning/analysis/population.py": _analysis("statistics"),
    "clt_lightning/analysis/evaluate.py": _analysis("tower", gathers=True),
    "clt_lightning/analysis/features.py": _analysis("features", gathers=True),
    "clt_lightning/analysis/retrieval.py": _analysis("features", gathers=True),
    "clt_lightning/analysis/collector.py": _analysis("features", gathers=True),
    "clt_lightning/analysis/steering.py": _analysis("steering"),
}
_MOST_MEMORY = 8 << 30
_NO_TESTS = 70  # exit code where pytest could not even be started
_FROM_OUTSIDE = (-signal.SIGTERM, -signal.SIGKILL, -signal.SIGHUP, _NO_TESTS)
#: imported once, before the first fork: half of a run's time otherwise
PRELOADED: tuple[str, ...] = (
    "torch",
    "torch.distributed",
    "lightning.pytorch",
    "lightning.pytorch.cli",
    "open_clip",
    "torchmetrics",
)
PRELOADED += ("tensorboard.backend.event_processing.event_accumulator", "webdataset", "hypothesis", "pytest")
PRELOADED += ("hypothesis.extra.numpy", "matplotlib.pyplot", "tqdm.auto", "huggingface_hub", "torchvision.transforms")
#: what tells one mutation from another, also when lines have moved
KEYS = ("file", "operator", "before", "after")
_COPIED: tuple[str, ...] = ("benchmarks", "clt_lightning", "tests", "configs", "docs", "examples")
_COPIED += ("pyproject.toml", "README.md", "CONTRIBUTING.md")


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
        tests = tuple(t for t in TESTS[place.file] if t.startswith("-") or (self.tree / t).exists())
        limit = self.limit(tests)
        path = self.tree / place.file
        source = path.read_text(encoding="utf-8")
        try:
            path.write_text(place.mutation.apply(source), encoding="utf-8")
            code = self._run(tests, limit)
        finally:
            path.write_text(source, encoding="utf-8")
        if code is not None and code in _FROM_OUTSIDE:
            raise RuntimeError("the tests were ended from outside: start again with the same --out")
        return {0: "survived", None: "timeout"}.get(code, "killed")

    def _run(self, tests: tuple[str, ...], limit: float) -> int | None:
        """Exit code of pytest; None past the limit."""
        pid = os.fork()
        if pid == 0:
            code = _NO_TESTS
            try:
                code = self._child(tests)
            finally:  # never back into the parent's loop
                os._exit(code)
        end = time.monotonic() + limit
        done = False
        try:
            while time.monotonic() < end:
                found, status = os.waitpid(pid, os.WNOHANG)
                if done := found == pid:
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.05)
            return None
        finally:
            _kill_group(pid)  # also what the tests have started and left
            if not done:
                os.waitpid(pid, 0)

    def _child(self, tests: tuple[str, ...]) -> int:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))  # a wrong size may ask for all there is
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
    """Judges mutations one after the other; `out` is written after each, and what it holds already is not judged."""
    equivalent = known_equivalents()
    records: list[dict[str, Any]] = json.loads(out.read_text()) if out is not None and out.is_file() else []
    done = Counter(tuple(record[key] for key in KEYS) for record in records)
    chosen = [place for place in chosen if not done[tuple(place.record()[key] for key in KEYS)]]
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
    parser.add_argument("--out", type=Path, help="JSON file for the records; one that is there is gone on with")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the tests under way are ended, too
    chosen = places(sorted(arguments.file or TESTS))
    total = len(chosen)
    if arguments.again is not None:
        before = json.loads(arguments.again.read_text())
        wanted = {tuple(r[key] for key in KEYS) for r in before if r["outcome"] == "survived"}
        chosen = [place for place in chosen if tuple(place.record()[key] for key in KEYS) in wanted]
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
