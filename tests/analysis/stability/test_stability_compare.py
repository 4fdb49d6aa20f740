"""Several runs compared: groups of features, subspaces, what trainings differ in, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import clt_lightning as cl
from clt_lightning.analysis.feature_rows import Rows
from clt_lightning.analysis.matching import STATES, Side
from clt_lightning.analysis.stability import (
    Member,
    anchors_against_others,
    by_rate,
    compare,
    owned_coordinates,
    owners_against_others,
    subspace_overlap,
    targets_written,
)
from clt_lightning.analysis.stability.groups import _difference
from clt_lightning.analysis.stability.members import differences, member, training_seeds, training_settings
from clt_lightning.analysis.stability.pairs import over_pairs
from clt_lightning.cli.main import main
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder, TopK

LAYERS, WIDTH, FEATURES = 3, 24, 40


def made(seed: int, like: CrossLayerTranscoder | None = None, same: int = 0) -> CrossLayerTranscoder:
    """Random features, of which the first `same` are another one's."""
    clt = CrossLayerTranscoder(LAYERS, WIDTH, FEATURES, TopK(4), seed=seed)
    with torch.no_grad():
        for layer in range(LAYERS):
            clt.W_dec[layer].normal_(generator=torch.Generator().manual_seed(seed))
            if like is not None:
                clt.W_dec[layer][:same] = like.W_dec[layer][:same]
                clt.W_enc[layer][:same] = like.W_enc[layer][:same]
    return clt


# -- subspaces --------------------------------------------------------------------------------------------------------
def rows(n: int, basis: torch.Tensor, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, len(basis), generator=generator) @ basis
    return Rows(list(mixed.split(mixed.shape[1] // 2, 1)))


def basis(dimension: int, width: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(width, dimension, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn).Q.T  # type: ignore[no-any-return]


def test_one_subspace_without_a_common_feature() -> None:
    space = basis(6, 60, 0)
    found = subspace_overlap(rows(80, space, 1), rows(70, space, 2), energy=1.0)
    assert found is not None
    assert (found.dimension, found.width, found.features) == (6, 60, (80, 70))
    assert found.overlap == pytest.approx(1, abs=1e-4)
    assert found.explained == pytest.approx(1, abs=1e-4)
    assert found.single < 0.9  # no two of them are alike
    assert found.angles.max() < 1


def test_angles_are_those_of_the_planes() -> None:
    """Two planes in four dimensions, 0 and 30 degrees apart."""
    first = torch.eye(4)[:2]
    turned = torch.stack([first[0], np.cos(np.pi / 6) * first[1] + np.sin(np.pi / 6) * torch.eye(4)[2]])
    found = subspace_overlap(rows(50, first, 1), rows(50, turned, 2), energy=1.0)
    assert found is not None
    np.testing.assert_allclose(found.angles, [0, 30], atol=0.1)
    assert found.overlap == pytest.approx((1 + 0.75) / 2, abs=1e-3)


@pytest.mark.parametrize(("dimension", "width"), [(5, 40), (20, 50)])
def test_random_subspaces_overlap_by_chance(dimension: int, width: int) -> None:
    found = [
        subspace_overlap(
            rows(90, basis(dimension, width, 2 * seed), seed),
            rows(90, basis(dimension, width, 2 * seed + 1), seed + 1),
            1.0,
        )
        for seed in range(12)
    ]
    chance = dimension / width
    assert all(f is not None and f.chance == pytest.approx(chance) for f in found)
    assert np.mean([f.overlap for f in found if f]) == pytest.approx(chance, abs=0.04)
    assert np.mean([f.explained for f in found if f]) == pytest.approx(chance, abs=0.05)


def test_a_group_of_zeros_has_no_subspace() -> None:
    some = rows(5, basis(2, 8, 0), 0)
    assert subspace_overlap(some, Rows([torch.zeros(3, 4), torch.zeros(3, 4)])) is None
    assert subspace_overlap(some.take(torch.arange(0)), some) is None


# -- groups -----------------------------------------------------------------------------------------------------------
def side(kept: np.ndarray, dead: np.ndarray | None = None) -> Side:
    state = np.where(kept, STATES.index("kept"), STATES.index("new")).astype(np.int8)
    if dead is not None:
        state[dead] = STATES.index("dead")
    cosine = np.where(kept, 0.9, 0.3).astype(np.float32)
    return Side(state, np.zeros(len(state), int), cosine, cosine + 0.05)


def test_stability_by_rate() -> None:
    rates = np.array([[0.005, 0.002, 0.03, 0.05, 0.5, 0.0]])
    kept = np.array([False, False, True, False, True, False])
    found = by_rate([side(kept, rates[0] == 0)], rates)
    told = [(low, high, g.features, g.kept) for low, high, g in found.bins]
    assert told == [  # type: ignore[comparison-overlap]
        (pytest.approx(0.001), pytest.approx(0.01), 2, 0),
        (pytest.approx(0.01), pytest.approx(0.1), 2, 1),
        (pytest.approx(0.1), pytest.approx(1.0), 1, 1),
    ]
    assert found.bins[1][2].both == pytest.approx(0.6)
    assert found.bins[1][2].encoder == pytest.approx(0.65)
    assert found.correlation > 0.5
    assert by_rate([side(kept)], np.zeros((1, 6))).to_json() == {"bins": [], "correlation": None}


def test_targets_are_counted_in_the_backbones_units() -> None:
    clt = made(0)
    with torch.no_grad():
        clt.W_dec[0][0, 1:] = 0  # one target
        clt.W_dec[0][1] = 0  # none
        clt.W_dec[0][2, 1] *= 0.01
        clt.W_dec[1][3, 1] *= 0.2
    found = targets_written(clt)
    assert found.shape == (LAYERS, FEATURES)
    assert found[0, :4].tolist() == [1, 0, 2, 3]
    assert found[1, 3] == 2
    assert (found[2] == 1).all()
    assert targets_written(clt, 0.9)[1, 3] == 1
    with torch.no_grad():
        clt.W_dec[1][3, 1] *= 0.2
    assert targets_written(clt)[1, 3] == 1
    clt.y_scale[1] = 0.2  # of the target that was larger
    assert targets_written(clt)[1, 3] == 2


def test_anchors_against_others() -> None:
    clt = made(0)
    with torch.no_grad():
        for layer in range(2):
            clt.W_dec[layer][:10, 1:] = 0
    kept = np.zeros(FEATURES, bool)
    kept[:8] = True  # of the anchors 8 of 10
    kept[10:16] = True  # of the others 6 of 30
    found = anchors_against_others(clt, [side(kept)] * LAYERS)
    assert found is not None
    assert (found.anchors.features, found.others.features) == (20, 60)  # not of the last layer
    assert found.difference.value == pytest.approx(0.8 - 0.2)
    assert 0.3 < found.difference.low < 0.6 < found.difference.high < 0.9
    assert np.isnan(found.at_equal_rates.value)
    # where rates alone decide, nothing is left at equal rates
    rates = np.where(kept, 0.2, 0.02)[None].repeat(LAYERS, 0)
    equal = anchors_against_others(clt, [side(kept)] * LAYERS, rates)
    assert equal is not None
    assert equal.difference.value == pytest.approx(0.6)
    assert equal.at_equal_rates.value == pytest.approx(0)
    layerwise = CrossLayerTranscoder(LAYERS, WIDTH, FEATURES, TopK(4), "per_layer")
    assert anchors_against_others(layerwise, [side(kept)] * LAYERS) is None


def test_features_alone_on_coordinates_against_others() -> None:
    """A planted world in which features 0 to 7 have channel f of layer 2's output to themselves, but one leaks."""
    clt = made(0)
    with torch.no_grad():
        for source in range(LAYERS):
            clt.W_dec[source][:, 2 - source if source < 3 else 0, :8] = 0
        for f in range(8):
            clt.W_dec[1][f, 1, f] = 1.0
        clt.W_dec[0][20, 2, 5] = 0.5  # a fifth of channel 5's energy is another's
        clt.W_dec[0][21, 2, 6] = 0.2
    owned = owned_coordinates(clt)
    assert owned[1, :8].tolist() == [1, 1, 1, 1, 1, 0, 1, 1]
    assert owned.sum() == 7
    assert owned_coordinates(clt, alone=0.75)[1, 5] == 1
    power = np.ones((LAYERS, FEATURES))
    power[0, 20] = 0.01  # it hardly ever fires
    power[0, 21] = 100.0
    assert owned_coordinates(clt, power)[1, :8].tolist() == [1, 1, 1, 1, 1, 1, 0, 1]
    kept = np.zeros(FEATURES, bool)
    kept[:5] = True
    found = owners_against_others(clt, [side(kept)] * LAYERS)
    assert found is not None
    assert (found.anchors.features, found.anchors.kept) == (7, 5)
    assert found.others.features == LAYERS * FEATURES - 7
    assert found.difference.value == pytest.approx(5 / 7 - 10 / (LAYERS * FEATURES - 7))
    assert owners_against_others(made(1), [side(kept)] * LAYERS) is None


# -- runs -------------------------------------------------------------------------------------------------------------
def config(**changes: Any) -> dict[str, Any]:
    data = {"class_path": "clt_lightning.data.Demo", "init_args": {"seed": 0, "world": 5, "root": "data/demo"}}
    found: dict[str, Any] = {
        "seed_everything": 0,
        "name": "x",
        "model": {"seed": 0, "transcoder": {"n_features": FEATURES, "backend": "auto"}},
        "trainer": {"max_steps": 10, "devices": 1},
        "data": data,
    }
    for key, value in changes.items():
        place = found
        *path, last = key.split("__")
        for part in path:
            place = place[part]
        place[last] = value
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"name": "y", "trainer__devices": 2, "data__init_args__root": "elsewhere"}, []),
        ({"model__seed": 1}, ["initial weights"]),
        ({"data__init_args__seed": 1}, ["data order"]),
        ({"data__init_args__seed": 1, "data__init_args__world": None}, ["images", "data order"]),
        ({"model__seed": None, "seed_everything": 3}, ["initial weights"]),
        ({"seed_everything": 3}, []),
        ({"model__transcoder__n_features": 9, "model__seed": 1}, ["settings", "initial weights"]),
        ({"trainer__max_steps": 11}, ["settings"]),
        ({"model__transcoder__activation": {"k": 2}}, ["settings"]),
    ],
)
def test_what_trainings_differ_in(changes: dict[str, Any], expected: list[str]) -> None:
    clt = made(0)
    a, b = (
        Member("x", clt, settings=training_settings(c), seeds=training_seeds(c)) for c in (config(), config(**changes))
    )
    assert differences(a, b) == expected
    assert differences(b, a) == expected
    assert differences(a, Member("z", clt)) is None


def test_the_mean_over_pairs_knows_that_they_share_runs() -> None:
    pairs = [(0, 1), (0, 2), (1, 2)]
    found = over_pairs([0.5, 0.6, 0.7], pairs, 3)
    # leaving run 0 out leaves 0.7, and so on: the jackknife's variance is 2/3 of the squares' sum, t(2) = 4.303
    reach = 4.302653 * np.sqrt(2 / 3 * 2 * 0.1**2)
    assert (found.value, found.least, found.most, found.pairs) == (pytest.approx(0.6), 0.5, 0.7, 3)  # type: ignore[comparison-overlap]
    assert (found.low, found.high) == (pytest.approx(0.6 - reach, abs=1e-5), pytest.approx(0.6 + reach, abs=1e-5))  # type: ignore[comparison-overlap]
    assert np.isnan(over_pairs([0.5], [(0, 1)], 2).low)
    assert np.isnan(over_pairs([0.5, 0.6, 0.7], pairs, 3, interval=False).low)
    assert np.isnan(over_pairs([float("nan")], [(0, 1)], 2).value)


def test_intervals_over_runs_cover() -> None:
    """Pairs of runs whose quality is drawn: about 95 % of the intervals hold the mean."""
    rng = np.random.default_rng(0)
    pairs = [(a, b) for a in range(5) for b in range(a + 1, 5)]
    inside = []
    for _ in range(300):
        quality = rng.normal(size=5)
        found = over_pairs([quality[a] + quality[b] for a, b in pairs], pairs, 5)
        inside.append(found.low <= 0 <= found.high)
    assert 0.9 < np.mean(inside) < 0.99


def run_folder(place: Path, clt: CrossLayerTranscoder, sha: str = "0" * 64, **changes: Any) -> Path:
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(yaml.safe_dump(config(**changes)))
    clip = {"name": "demo", "pretrained": "demo", "weights_sha256": sha}
    (place / "results.json").write_text(json.dumps({"run": {"clip": clip, "finished": "today"}}))
    clt.save_pretrained(place / "transcoder")
    return place


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    first = made(0)
    return [
        run_folder(root / "a" / "version_0", first),
        run_folder(root / "b" / "version_0", made(1, first, 30), model__seed=1),
        run_folder(root / "c" / "version_0", made(2, first, 10), model__seed=2),
        run_folder(root / "other" / "version_0", made(3), sha="1" * 64),
    ]


def test_planted_shares_are_found_again(folders: list[Path]) -> None:
    found = compare(folders[:3])
    by_pair = {(pair.a, pair.b): pair.numbers() for pair in found.pairs}
    assert {pair: numbers["kept"] for pair, numbers in by_pair.items()} == {
        (0, 1): pytest.approx(30 / 40),
        (0, 2): pytest.approx(10 / 40),
        (1, 2): pytest.approx(10 / 40),
    }
    assert by_pair[0, 1]["mcc_both"] > by_pair[0, 2]["mcc_both"] > found.pairs[1].nulls()["untrained"]["mcc_both"]
    counts = found.found_in(0)
    assert (counts[:, :10] == 2).all()
    assert (counts[:, 10:30] == 1).all()
    assert (counts[:, 30:] == 0).all()
    assert found.to_json()["runs"][0]["found_in"] == [30, 60, 30]
    (group,) = found.by_difference()
    assert (group["differ"], group["pairs"]) == (["initial weights"], 3)
    assert group["kept"] == pytest.approx((30 + 10 + 10) / 120)
    mean = found.mean()["kept"]
    assert mean.low < mean.value < mean.high
    assert found.to_json()["differing"] == [{"key": "seed of initial weights", "values": ["0", "1", "2"]}]


def test_the_public_name_takes_transcoders_and_opened_folders(folders: list[Path]) -> None:
    clt = made(0)
    (pair,) = cl.compare([clt, folders[0]]).pairs
    assert pair.differ is None
    assert pair.numbers()["kept"] == 1
    (again,) = cl.compare([folders[0].parent, folders[1] / "transcoder"]).pairs
    assert again.numbers()["kept"] == pytest.approx(0.75)


def test_the_command(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, arrays = tmp_path / "out" / "c.json", tmp_path / "c.npz"
    main(["compare", *map(str, folders[:3]), "--output", str(output), "--arrays", str(arrays)])
    said = capsys.readouterr().out
    for words in (
        "a/version_0",
        "initial weights",
        "chance: untrained",
        "kept in n others",
        "firing rates are not known",
    ):
        assert words in said
    assert "no two of these differ in the data order alone" in said
    content = json.loads(output.read_text())
    assert content["pairs"][0]["kept"] == pytest.approx(0.75)
    assert [run["title"] for run in content["runs"]] == ["a/version_0", "b/version_0", "c/version_0"]
    with np.load(arrays) as found:
        assert (found["0_1/partner"][:, :30] == np.arange(30)).all()
        assert (found["1_0/state"][:, :30] == STATES.index("kept")).all()
        assert found["0/found_in"].shape == (LAYERS, FEATURES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A"], "two runs or more"),
        (["A", "A"], "named twice"),
        (["A", "A/.."], "named twice"),
        (["A", "OTHER"], "different backbones"),
        (["A", "nowhere"], "there is no such folder"),
        (["A", "B", "--kept", "0.3"], "near <= kept"),
        (["A", "B", "--assignment", "best"], "there are: auto, hungarian, greedy"),
        (["A", "B", "--output", "A"], "is a folder: name a file"),
        (["A", "SMALL"], "3 layers of width 24, the other for 3 of width 8"),
    ],
)
def test_mistakes(
    folders: list[Path], tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = CrossLayerTranscoder(LAYERS, 8, 8, TopK(2))
    named = {"A": folders[0], "B": folders[1], "OTHER": folders[3], "A/..": folders[0].parent}
    if "SMALL" in words:
        named["SMALL"] = small.save_pretrained(tmp_path / "small")
    with pytest.raises(SystemExit) as left:
        main(["compare", *(str(named.get(word, word)) for word in words)])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_features_of_other_weights_are_refused(folders: list[Path]) -> None:
    with pytest.raises(UserError, match="two runs or more"):
        compare(folders[0])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="must be"):
        compare([Member("a", made(0), rates=np.ones((LAYERS, 3))), made(1)])


def of_studies(**changes: Any) -> dict[str, Any]:
    """The same of two sets of renders at once."""
    found = config()
    arguments: dict[str, dict[str, Any]] = {name: {"root": f"data/{name}", "texture": name} for name in ("a", "b")}
    arguments["a"] |= changes
    sets = {name: {"class_path": "Demo", "init_args": each} for name, each in arguments.items()}
    found["data"] = {"class_path": "clt_lightning.data.Studies", "init_args": {"seed": 0, "sets": sets}}
    return found


@pytest.mark.parametrize(
    ("changes", "seed", "expected"),
    [
        ({"root": "elsewhere", "num_workers": 4}, 0, []),
        ({}, 1, ["images", "data order"]),  # renders take the seed of the whole
        ({"seed": 7}, 0, ["images", "data order"]),
        ({"world": 3}, 0, ["images"]),
        ({"texture": "b"}, 0, ["settings"]),
    ],
)
def test_what_trainings_on_several_sets_differ_in(changes: dict[str, Any], seed: int, expected: list[str]) -> None:
    clt, other = made(0), of_studies(**changes)
    other["data"]["init_args"]["seed"] = seed
    a, b = (Member("x", clt, settings=training_settings(c), seeds=training_seeds(c)) for c in (of_studies(), other))
    assert differences(a, b) == expected


def test_a_runs_transcoder_is_the_run(folders: list[Path]) -> None:
    whole, inner = member(folders[0]), member(folders[0] / "transcoder")
    assert (inner.title, inner.settings, inner.seeds) == (whole.title, whole.settings, whole.seeds)


def test_a_difference_of_few_features_is_not_certain() -> None:
    kept, first = np.zeros(13, bool), np.arange(13) < 3
    kept[3:] = True  # none of 3 against all of 10
    found = _difference(kept, first, ~first, np.zeros(13, int), 0)
    assert found.value == -1
    assert -1 < found.low < found.high < -0.3
