"""Features over real processes: the numbers of one process, to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clt_lightning.errors import UserError
from clt_lightning.parallel import Shards

from . import scenes
from .processes import run

CONFIGS: dict[str, dict[str, Any]] = {
    "topk": {"activation": {"class_path": "TopK", "init_args": {"k": 4}}},
    "abs_topk-skip": {"activation": {"class_path": "AbsTopK", "init_args": {"k": 4}}, "skip": True},
    "batch_topk": {"activation": {"class_path": "BatchTopK", "init_args": {"k": 4}}},
    "jumprelu-per_layer": {"activation": {"class_path": "JumpReLU"}, "topology": "per_layer"},
    "relu-dense": {"activation": {"class_path": "ReLU"}, "backend": "dense"},
}


def close(a: Any, b: Any, where: str = "") -> None:
    """Nested states equal to 1e-5 of a tensor's largest entry."""
    if isinstance(a, Tensor):
        assert a.shape == b.shape, where
        if a.dtype.is_floating_point and a.numel():
            assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-12, where
        else:
            assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            close(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            close(x, y, f"{where}/{i}")
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-5), where
    else:
        assert a == b, where


def several(steps: int, feature: int, data: int) -> dict[str, Any]:
    """All configs in one start of the processes: starting them is what costs."""
    return {
        name: scenes.train(config, steps, feature, data, parts=name != "abs_topk-skip")
        for name, config in CONFIGS.items()
    }


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return several(6, 0, 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(several, tmp_path_factory.mktemp("two"), 2, 6, 2, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_train_as_one(name: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    for key in ("losses", "norms", "state", "optimizer"):
        close(two[0][name][key], one[name][key], key)
    assert two[0][name]["losses"] == two[1][name]["losses"]
    assert two[1][name]["state"] is None  # one process writes
    assert one[name]["losses"][-1]["reconstruction"] < one[name]["losses"][0]["reconstruction"]


def test_memory_of_a_rank_is_its_share(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    shared = 3 * scenes.LAYERS * scenes.WIDTH * 4  # b_dec and its two moments are everywhere
    for rank in two:
        mine = rank["topk"]["bytes"] - shared
        assert mine == pytest.approx((one["topk"]["bytes"] - shared) / 2, rel=0.01)


def test_data_and_features_as_a_mesh(tmp_path: Path) -> None:
    config = CONFIGS["topk"]
    alone = scenes.train(config, 4, 0, 2, True)
    assert alone is not None
    mesh = run(scenes.train, tmp_path, 4, config, 4, 2, 2, True)
    for key in ("losses", "norms", "state", "optimizer"):
        close(mesh[0][key], alone[key], key)
    assert [rank["state"] is None for rank in mesh] == [False, True, True, True]


def test_states_go_from_any_number_of_processes_to_any_other(
    tmp_path: Path, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    name = "jumprelu-per_layer"
    straight = scenes.train(CONFIGS[name], 9, 0, 1, True)
    assert straight is not None
    half = {key: two[0][name][key] for key in ("state", "optimizer")}
    plain = scenes.train(CONFIGS[name], 3, 0, 1, True, half, 6)
    three = run(scenes.train, tmp_path, 3, CONFIGS[name], 3, 3, 1, True, half, 6)
    for found in (plain, three[0]):
        assert found is not None
        close(found["state"], straight["state"])
        close(found["optimizer"]["state"], straight["optimizer"]["state"])


@pytest.mark.parametrize("name", ["topk", "abs_topk-skip", "batch_topk"])
def test_evaluation_sees_all_features(name: str, one: dict[str, Any], tmp_path: Path) -> None:
    state = one[name]["state"]
    clt = scenes.build(CONFIGS[name], None)
    clt.load_state_dict(state)
    expected = scenes.evaluated(clt, scenes.batch(0)[0])
    ranks = run(scenes.evaluate, tmp_path, 2, CONFIGS[name], state)
    fired = ranks[0].pop("fired") | ranks[1].pop("fired")
    assert torch.equal(fired, expected.pop("fired"))
    for rank in ranks:
        whole = rank.pop("whole")
        close(rank, expected)
        if rank is ranks[0]:
            assert whole[0] == clt.config()
            close(whole[1], state)
        else:
            assert whole is None


def reference(score: Tensor, k: int, floor: float) -> list[list[int]]:
    """By value, then by number."""
    order = torch.argsort(score, dim=1, descending=True, stable=True)[:, :k]
    return [sorted(f for f in row.tolist() if score[n, f] > floor) for n, row in enumerate(order)]


def test_selection_is_exact_also_where_values_are_equal(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for k in (1, 3, 7, 12, 30):
        cases.append((torch.randn(9, 24, generator=generator), k, 0.0))
        cases.append((torch.randint(-2, 3, (40, 24), generator=generator).float(), k, 0.0))
        cases.append((torch.randint(0, 3, (40, 24), generator=generator).float(), k, -1.0))
        cases.append((torch.zeros(2, 24), k, -1.0))
    cases.append((torch.ones(3, 24), 5, 0.0))
    ranks = run(scenes.selections, tmp_path, 3, cases)
    for number, (score, k, floor) in enumerate(cases):
        together = [sorted(f for rank in ranks for f in rank[number][n]) for n in range(len(score))]
        assert together == reference(score, k, floor), (k, floor)


def test_batch_cut_is_the_kth_largest_of_the_batch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    skewed = torch.randn(10, 48, generator=generator)
    skewed[0] += 10  # one token wins more than 4 k places
    cases = [(skewed, 2), (torch.randn(10, 48, generator=generator), 3), (torch.randn(4, 8, generator=generator), 8)]
    for rank in run(scenes.cuts, tmp_path, 2, cases):
        for (score, k), cut in zip(cases, rank):
            budget = k * len(score)
            expected = None if budget >= score.numel() else score.flatten().sort(descending=True).values[budget - 1]
            assert cut == (None if expected is None else expected.item())


def test_features_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(UserError, match=r"n_features=50.*multiple of 4"):
        Shards(None, 0, 4).width(50)
