"""The state keeps its digits under casts, and two real processes give the number of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from clt_lightning.metrics import FVU, L0, Cosine, DeadFeatures, ExactMetric, LogitKL, ZeroShotAccuracy
from clt_lightning.metrics.base import blocks
from tests.parallel import processes


def metrics() -> dict[str, ExactMetric]:
    return {
        "fvu": FVU(2, 4),
        "cosine": Cosine(2),
        "l0": L0(2),
        "dead": DeadFeatures(2, 30),
        "accuracy": ZeroShotAccuracy(4),
        "kl": LogitKL(),
    }


def batches() -> list[dict[str, tuple[Any, ...]]]:
    """Five batches of different sizes."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for n in (7, 3, 11, 1, 8):
        y = torch.randn(2, n, 4, generator=generator) + 2
        cosines = torch.rand(n, 4, generator=generator) * 2 - 1
        codes = torch.rand(2, n, 30, generator=generator) > 0.97
        out.append(
            {
                "fvu": (y, y + 0.3 * torch.randn(2, n, 4, generator=generator)),
                "cosine": (y, y + 0.3 * torch.randn(2, n, 4, generator=generator)),
                "l0": (codes.sum(-1),),
                "dead": (codes.any(1), n),
                "accuracy": (cosines, torch.randint(-1, 4, (n,), generator=generator)),
                "kl": (cosines, cosines.flip(0)),
            }
        )
    return out


def results(chosen: list[dict[str, tuple[Any, ...]]]) -> dict[str, Tensor]:
    out = {}
    for name, metric in metrics().items():
        for batch in chosen:
            metric.update(*batch[name])
        value = metric.compute()
        out[name] = torch.stack(list(value.values())) if isinstance(value, dict) else value
    return out


def share_of_one_process() -> dict[str, Tensor]:
    """Unequal shares: 4 batches here, 1 there."""
    return results(batches()[:4] if dist.get_rank() == 0 else batches()[4:])


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    whole = results(batches())
    for found in processes.run(share_of_one_process, tmp_path, 2):
        for name, value in found.items():
            torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=0, msg=f"{name} of one of two processes")


def types(metric: ExactMetric) -> set[torch.dtype]:
    """Of its state."""
    states = list(metric.metric_state.values())
    assert all(isinstance(state, Tensor) for state in states)
    return {state.dtype for state in states if isinstance(state, Tensor)}


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.float(),
    ],
    ids=["half", "bfloat16", "to", "to-device", "float"],
)
def test_casts_of_the_model_around_leave_the_state_alone(cast: Callable[[nn.Module], nn.Module]) -> None:
    expected = results(batches())
    for name, metric in metrics().items():
        parent = nn.ModuleDict({"metric": metric, "weights": nn.Linear(2, 2)})
        for batch in batches()[:2]:
            metric.update(*batch[name])
        cast(parent)
        for batch in batches()[2:]:
            metric.update(*batch[name])
        assert types(metric) <= {torch.float64, torch.int64, torch.uint8}
        value = metric.compute()
        value = torch.stack(list(value.values())) if isinstance(value, dict) else value
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
        metric.reset()
        assert types(metric) <= {torch.float64, torch.int64, torch.uint8}


def test_blocks_cover_every_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clt_lightning.metrics.base._BLOCK", {"cpu": 40})
    tensor = torch.arange(7 * 5 * 3, dtype=torch.float32).reshape(7, 5, 3)[:, 1:]  # a view with gaps
    pieces = [a for (a,) in blocks(tensor, device=torch.device("cpu"))]
    assert len(pieces) > 1
    assert all(piece.dtype == torch.float64 and piece.numel() <= 40 for piece in pieces)
    assert torch.equal(torch.cat(pieces), tensor.reshape(-1, 3).double())
    assert [a.shape for (a,) in blocks(torch.zeros(3), device=torch.device("cpu"))] == [(1, 3)]
