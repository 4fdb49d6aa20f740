"""What a config sets to something else than the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from clt_lightning.cli.changes import config_changes

CONFIGS = Path(__file__).parents[2] / "configs"


def changes(config: dict[str, Any]) -> dict[str, tuple[str | None, str]]:
    return {key: (usual, value) for key, usual, value in config_changes(config)}


def test_only_what_differs_is_told() -> None:
    found = changes(
        {
            "name": "clt",
            "version": 3,  # of the run, not of the recipe
            "trainer": {"max_steps": 500, "accumulate_grad_batches": 1, "gradient_clip_val": None},
            "model": {
                "transcoder": {"n_features": 768, "topology": "cross_layer"},
                "loss": {"cascade": {"images": 32, "stream": 0.5}},
            },
        }
    )
    assert found == {
        "trainer.max_steps": ("-1", "500"),
        "model.transcoder.n_features": ("6144", "768"),
        "model.loss.cascade.images": ("64", "32"),
    }


def test_classes_are_compared_by_their_own_defaults() -> None:
    activation = {"class_path": "clt_lightning.BatchTopK", "init_args": {"k": 12, "momentum": 0.95}}
    data = {"class_path": "clt_lightning.data.Demo", "init_args": {"root": "data/demo", "n_train": 20000, "seed": 5}}
    found = changes({"model": {"transcoder": {"activation": activation}}, "data": data})
    assert found["model.transcoder.activation"][1] == "clt_lightning.BatchTopK"
    assert found["model.transcoder.activation.k"] == ("64", "12")
    assert "model.transcoder.activation.momentum" not in found
    assert found["data"] == (None, "clt_lightning.data.Demo")
    assert found["data.seed"] == ("null", "5")


def test_a_class_of_the_users_own_is_not_imported() -> None:
    data = {"class_path": "nowhere.Mine", "init_args": {"root": "x"}}
    assert changes({"data": data}) == {"data": (None, "nowhere.Mine"), "data.root": (None, "x")}


def test_numbers_and_truth_are_told_apart() -> None:
    assert changes({"model": {"transcoder": {"skip": 0}}}) == {"model.transcoder.skip": ("false", "0")}


@pytest.mark.parametrize("name", ["quickstart", "vitb32"])
def test_the_shipped_configs_name_what_they_set(name: str) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    found = changes(config)
    assert found["name"] == ("clt", name)
    # every key is one that there is: else its default would be unknown
    unknown = [key for key, (usual, _) in found.items() if usual is None]
    assert all(key.startswith("data") or key.endswith("optimizer") or ".optimizer." in key for key in unknown), unknown
