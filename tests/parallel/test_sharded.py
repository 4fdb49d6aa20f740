"""Features over real processes: the numbers of one process, to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.parallel import Shards
from clt_lightning.transcoder import CrossLayerTranscoder

from . import scenes
from .processes import run

CONFIGS: dict[str, dict[str, Any]] = {
    "topk": {"activation": {"class_path": "TopK", "init_args": {"k": 4}}},
    "abs_topk-skip": {"activation": {"class_path": "AbsTopK", "init_args": {"k": 4}}, "skip": True},
    "batch_topk": {"activation": {"class_path": "BatchTopK", "init_args": {"k": 4}}},
    "topk-sparse": {"activation": {"class_path": "TopK", "init_args": {"k": 4}}, "backend": "sparse"},
    "batch_topk-tilt": {"activation": {"class_path": "BatchTopK", "init_args": {"k": 4, "tilt": 0.5}}},
    "batch_topk-sparse": {"activation": {"class_path": "BatchTopK", "init_args": {"k": 4}}, "backend": "sparse"},
    "jumprelu-per_layer": {"activation": {"class_path": "JumpReLU"}, "topology": "per_layer"},
    "relu-dense": {"activation": {"class_path": "ReLU"}, "backend": "dense"},
    **{
        f"outside-{name}": {"activation": {"class_path": f"tests.parallel._outside.{name}", "init_args": arguments}}
        for name, arguments in (
            *(("Gate", {"least": 0.2}), ("NearTop", {"share": 0.5}), ("AboveMean", {})),
            *(("FewTopK", {"k": 6}), ("Crowned", {}), ("Eager", {"k": 2})),
        )
    },
}

EVALUATED = ["topk", "abs_topk-skip", "batch_topk", *(name for name in CONFIGS if name.startswith("outside"))]


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


def several(feature: int) -> dict[str, Any]:
    return {
        name: scenes.train(config, 6, feature, parts=name != "abs_topk-skip", want_pre="sparse" not in name)
        for name, config in CONFIGS.items()
    }


def score_cases() -> list[tuple[Tensor, int, float]]:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for k in (1, 3, 7, 12, 30):
        cases.append((torch.randn(9, 24, generator=generator), k, 0.0))
        cases.append((torch.randint(-2, 3, (40, 24), generator=generator).float(), k, 0.0))
        cases.append((torch.randint(0, 3, (40, 24), generator=generator).float(), k, -1.0))
        cases.append((torch.zeros(2, 24), k, -1.0))
    return [*cases, (torch.ones(3, 24), 5, 0.0)]


def batch_cases() -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(1)
    skewed = torch.randn(10, 48, generator=generator)
    skewed[0] += 10  # one token wins more than 4 k places
    return [(skewed, 2), (torch.randn(10, 48, generator=generator), 3), (torch.randn(4, 8, generator=generator), 8)]


def silent() -> Tensor:
    """A third of all features, on both of two processes."""
    return torch.arange(scenes.LAYERS * scenes.FEATURES).view(scenes.LAYERS, -1) % 3 == 1


def on_two(states: dict[str, Any], folder: str) -> dict[str, Any]:
    """Everything that is asked of two processes: starting them is what costs."""
    return {
        "folder": folder,
        "trained": several(2),
        "evaluated": {name: scenes.evaluate(CONFIGS[name], state) for name, state in states.items()},
        "winners": scenes.winners(batch_cases()),
        "with_prior": {name: scenes.with_prior(2, name, folder=f"{folder}/{name}") for name in scenes.priors()},
        "with_studies": {layout: scenes.with_studies(layout) for layout in ("features", "data")},
        "raised": scenes.raised(CONFIGS["topk"], silent(), 0.25),
        "screened": {name: scenes.screened(CONFIGS[name]) for name in ("topk", "abs_topk-skip", "batch_topk")},
    }


def on_four(start: dict[str, Any]) -> dict[str, Any]:
    return {
        "mesh": scenes.train(CONFIGS["topk"], 4, 2, 2, True),
        "continued": scenes.train(CONFIGS["jumprelu-per_layer"], 3, 4, 1, True, start, 6),
        "selected": scenes.selections(score_cases()),
    }


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return several(0)


@pytest.fixture(scope="module")
def two(one: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    states = {name: one[name]["state"] for name in EVALUATED}
    folder = tmp_path_factory.mktemp("two")
    return run(on_two, folder, 2, states, str(folder))


@pytest.fixture(scope="module")
def four(two: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(on_four, tmp_path_factory.mktemp("four"), 4, half_way(two))


def half_way(two: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: two[0]["trained"]["jumprelu-per_layer"][key] for key in ("state", "optimizer")}


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_train_as_one(name: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    first, second = (rank["trained"][name] for rank in two)
    for key in ("losses", "norms", "state", "optimizer"):
        close(first[key], one[name][key], key)
    assert first["losses"] == second["losses"]
    assert second["state"] is None  # one process writes
    assert one[name]["losses"][-1]["reconstruction"] < one[name]["losses"][0]["reconstruction"]


@pytest.mark.parametrize("name", scenes.priors())
def test_a_prior_on_groups_is_the_same_where_features_are_divided(
    two: list[dict[str, Any]], tmp_path: Path, name: str
) -> None:
    plain = scenes.with_prior(0, name, folder=str(tmp_path))
    first, second = (rank["with_prior"][name] for rank in two)
    assert second["W_dec"] is None
    zeros = sum(int((W.norm(dim=2) == 0).sum()) for W in plain["W_dec"])
    assert 0 < zeros < scenes.FEATURES * 5
    close(first["W_dec"], plain["W_dec"], "W_dec")
    for found in (first, second):
        close(found["state"], plain["state"], "state")
        assert found["logged"] == pytest.approx(plain["logged"])
    there = Path(two[0]["folder"]) / name
    files = [CrossLayerTranscoder.from_pretrained(folder) for folder in (there, tmp_path)]
    for i in range(scenes.LAYERS):  # what one process wrote for both holds the same groups
        close(files[0].W_dec[i].detach(), files[1].W_dec[i].detach(), f"files/{i}")
        assert torch.equal(files[0].W_dec[i] == 0, files[1].W_dec[i] == 0)
    assert (there / "model.safetensors").stat().st_size == (tmp_path / "model.safetensors").stat().st_size


def test_a_prior_on_use_is_the_same_over_features_and_over_data(two: list[dict[str, Any]]) -> None:
    plain = scenes.with_studies("one")
    assert 0.05 < float((plain["state"]["p"] < 0.5).float().mean()) < 0.95
    for rank, found in enumerate(two):
        for layout in ("features", "data"):
            close(found["with_studies"][layout]["state"], plain["state"], layout)
            assert found["with_studies"][layout]["logged"] == pytest.approx(plain["logged"])
        assert found["with_studies"]["features"]["values"] == pytest.approx(plain["values"], rel=1e-5)
        assert found["with_studies"]["data"]["values"] == pytest.approx(plain["values"][rank::2], rel=1e-5)


def test_memory_of_a_rank_is_its_share(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    shared = 3 * scenes.LAYERS * scenes.WIDTH * 4  # b_dec and its two moments are everywhere
    for rank in two:
        mine = rank["trained"]["topk"]["bytes"] - shared
        assert mine == pytest.approx((one["topk"]["bytes"] - shared) / 2, rel=0.01)


def test_data_and_features_as_a_mesh(four: list[dict[str, Any]]) -> None:
    alone = scenes.train(CONFIGS["topk"], 4, 0, 2, True)
    assert alone is not None
    # means of classes are each data group's own: `alone` takes them in each of the two batches by itself
    assert all(step["prototype"] > 0 for step in alone["losses"])
    for key in ("losses", "norms", "state", "optimizer"):
        close(four[0]["mesh"][key], alone[key], key)
    assert [rank["mesh"]["state"] is None for rank in four] == [False, True, True, True]


def test_states_go_from_two_processes_to_one_and_four(two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    config = CONFIGS["jumprelu-per_layer"]
    straight = scenes.train(config, 9, 0, 1, True)
    plain = scenes.train(config, 3, 0, 1, True, half_way(two), 6)
    assert straight is not None
    assert plain is not None
    for found in (plain, four[0]["continued"]):
        close(found["state"], straight["state"])
        close(found["optimizer"]["state"], straight["optimizer"]["state"])


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluation_sees_all_features(name: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    clt = scenes.build(CONFIGS[name], None)
    clt.load_state_dict(one[name]["state"])
    expected = scenes.evaluated(clt, scenes.batch(0)[0])
    ranks = [rank["evaluated"][name] for rank in two]
    assert torch.equal(ranks[0]["fired"] | ranks[1]["fired"], expected["fired"])
    for rank in ranks:
        for key in expected.keys() - {"fired"}:
            close(rank[key], expected[key], key)
    assert ranks[1]["whole"] is None
    config, state = ranks[0]["whole"]
    assert config == clt.config()
    close(state, one[name]["state"])


def reference(score: Tensor, k: int, floor: float) -> list[list[int]]:
    """By value, then by number."""
    order = torch.argsort(score, dim=1, descending=True, stable=True)[:, :k]
    return [sorted(f for f in row.tolist() if score[n, f] > floor) for n, row in enumerate(order)]


def test_selection_is_exact_also_where_values_are_equal(four: list[dict[str, Any]]) -> None:
    for number, (score, k, floor) in enumerate(score_cases()):
        shares = [rank["selected"][number] for rank in four]
        together = [sorted(f for share in shares for f in share[n]) for n in range(len(score))]
        assert together == reference(score, k, floor), (k, floor)


def test_batch_winners_are_the_largest_of_the_batch(two: list[dict[str, Any]]) -> None:
    for rank in two:
        for (score, k), found in zip(batch_cases(), rank["winners"]):
            expected = score.flatten().sort(descending=True).values[: k * len(score)]
            assert torch.equal(found.sort(descending=True).values, expected)


@pytest.mark.parametrize("name", ["topk", "abs_topk-skip", "batch_topk"])
def test_a_bf16_product_selects_the_features_of_fp32(name: str, two: list[dict[str, Any]]) -> None:
    for rank in two:
        full, low = rank["screened"][name]
        assert ((full != 0) == (low != 0)).all(2).double().mean() >= 0.99
        torch.testing.assert_close(low, full, rtol=1e-4, atol=1e-5)


def test_each_process_raises_the_biases_of_its_own_features(two: list[dict[str, Any]]) -> None:
    expected = scenes.build(CONFIGS["topk"], None).b_enc.detach() + 0.25 * silent()
    assert torch.equal(two[0]["raised"], expected)


def test_features_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(UserError, match=r"n_features=50.*multiple of 4"):
        Shards(None, 0, 4).width(50)
