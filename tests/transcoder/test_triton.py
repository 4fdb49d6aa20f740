"""Triton's kernels: their cases by the interpreter and on a CUDA device, the choice of kernels, and the compiler."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder.dispatch import VARIABLE, has_triton, use_triton

CASES = Path(__file__).with_name("triton_cases.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_cases(**variables: str) -> None:
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", str(CASES)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    result = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


@needs_triton
def test_interpreted() -> None:
    run_cases(TRITON_INTERPRET="1", CLT_LIGHTNING_KERNELS="triton", OMP_NUM_THREADS="1")


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    run_cases(CLT_LIGHTNING_KERNELS="triton", CLT_CASES_DEVICE="cuda")


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(1)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for value in (None, "auto", "torch"):
        monkeypatch.delenv(VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(VARIABLE, value)
        assert not use_triton(tensor)
    monkeypatch.setenv(VARIABLE, "tritn")
    with pytest.raises(UserError, match="must be auto, torch or triton, got 'tritn'"):
        use_triton(tensor)
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(UserError, match="needs a CUDA device" if has_triton() else "not installed"):
        use_triton(tensor)


@needs_triton
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_compiles_for_hopper(dtype: str) -> None:
    """What the interpreter lets through may still not compile: no GPU is needed to find out."""
    triton = pytest.importorskip("triton", minversion="3.3", reason="the compiler's interface of Triton 3.3")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from clt_lightning.transcoder import triton_kernels as kernels

    tl, table, index, total = triton.language, f"*{dtype}", "*i32", "*fp32"
    tile = {"SUM_TYPE": tl.float32, "ROWS": 8, "COLUMNS": 256}
    flags = [(True, True), (True, False), (False, True)]
    variants = [(kernels._add_bags, {"ADD": True, **tile}), (kernels._add_slots, {"COLUMNS": 256})]
    variants += [(kernels._feature_gradients, {"DOTS": d, "SUMS": s, "CHUNK": 256, **tile}) for d, s in flags]
    pointers = dict.fromkeys(("table", "rows", "grad"), table) | dict.fromkeys(
        ("out", "values", "parts", "slots"), total
    )
    pointers |= dict.fromkeys(("features", "offsets", "tokens", "chunk_feature", "first_chunk", "first_slot"), index)
    pointers["slot_feature"] = index
    for kernel, constants in variants:
        signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in kernel.arg_names}
        source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()})
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
        assert compiled.asm["cubin"]
