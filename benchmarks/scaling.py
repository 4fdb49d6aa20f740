"""`python -m benchmarks.scaling`: how the step's cost grows with F, k and tokens, with fitted exponents.

What the encoder's product takes (it grows with F by nature) is measured in the same run and subtracted for the row
`beyond`; the optimizer is timed apart.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import machine, rates, seconds, write
from benchmarks.step import Step, build, parts, runs_in_bf16


def encoder_product(step: Step, rounds: int, device: str) -> float:
    """Median seconds of the encoder products of all layers alone."""

    def products() -> None:
        with torch.no_grad(), step.autocast:
            for layer in range(step.clt.n_layers):
                F.linear(step.x[layer], step.clt.W_enc[layer], step.clt.b_enc[layer])

    products()
    return statistics.median(seconds(products, device) for _ in range(rounds))


def point(options: argparse.Namespace, **changes: int) -> dict[str, float]:
    """Seconds of one point: forward + backward, the encoder's product in it, the optimizer."""
    args = argparse.Namespace(**{**vars(options), **changes})
    step = build(["ours"], args)["ours"]
    for _ in range(3):  # the first steps allocate, and the first point would be the slowest
        step()
    result = parts(step, options.rounds, options.device)
    result["product"] = encoder_product(step, options.rounds, options.device)
    result["beyond"] = max(result["forward"] + result["backward"] - result["product"], 1e-9)
    return result


def exponent(xs: list[int], ys: list[float]) -> float:
    """Slope of the least-squares line through (log x, log y)."""
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mu, mv = statistics.fmean(u), statistics.fmean(v)
    return sum((a - mu) * (b - mv) for a, b in zip(u, v)) / sum((a - mu) ** 2 for a in u)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--d_model", type=int, default=768)
    parser.add_argument("--features", type=int, default=3072, help="F where the others vary")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    info = machine(options.device)
    print(info)
    kind = torch.bfloat16 if options.dtype == "bf16" and runs_in_bf16(options.device) else torch.float32
    result: dict[str, Any] = {"machine": info, "rates": rates(options.device, kind), "options": vars(options)}
    grid = {
        "features": [options.features // 2, options.features, 2 * options.features],
        "k": [options.k // 2, options.k, 2 * options.k],
        "tokens": [options.tokens // 2, options.tokens, 2 * options.tokens],
    }
    point(options)  # unmeasured: the first point of all would be the slowest
    for name, values in grid.items():
        rows = [point(options, **{name: value}) for value in values]
        fits = {part: exponent(values, [row[part] for row in rows]) for part in rows[0]}
        result[name] = {"values": values, "rows": rows, "exponents": fits}
        print(f"\nagainst {name}: {values}")
        for part, fit in fits.items():
            times = "  ".join(f"{row[part]:8.3f}" for row in rows)
            print(f"  {part:<10} {times} s   exponent {fit:5.2f}")
    write(options.json, result)


if __name__ == "__main__":
    main()
