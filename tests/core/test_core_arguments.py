"""A number of the wrong kind is refused by name, and never rounded."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import clt_lightning as cl
from clt_lightning.analysis.arms import CascadeOptions
from clt_lightning.analysis.evaluate import EvaluateOptions
from clt_lightning.analysis.faithfulness import FaithfulnessOptions
from clt_lightning.analysis.features import FeatureOptions
from clt_lightning.analysis.population import PopulationOptions
from clt_lightning.core.arguments import number, whole
from clt_lightning.core.errors import UserError
from clt_lightning.training import losses, settings

WRONG: list[Any] = [1.5, 2.0, "3", True, [4], None, float("nan")]


@pytest.mark.parametrize("value", WRONG, ids=str)
def test_whole_numbers(value: Any) -> None:
    with pytest.raises(UserError, match="n must be a whole number, got"):
        whole("n", value)
    for right in (3, np.int64(3), torch.tensor(3)):
        assert whole("n", right) == 3
        assert type(whole("n", right)) is int
    with pytest.raises(UserError, match="n must be at least 4, got 3"):
        whole("n", 3, 4)


@pytest.mark.parametrize("value", ["3", True, None, float("nan"), float("inf"), [1.0]], ids=str)
def test_numbers(value: Any) -> None:
    with pytest.raises(UserError, match="x must be a number, got"):
        number("x", value)
    assert number("x", np.float32(0.5)) == 0.5
    assert type(number("x", 2)) is float


@pytest.mark.parametrize("value", WRONG, ids=str)
@pytest.mark.parametrize("name", ["TopK", "AbsTopK", "BatchTopK"])
def test_activations(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{name}: k must be a whole number, got"):
        getattr(cl, name)(k=value)


@pytest.mark.parametrize("name", ["n_layers", "d_model", "n_features"])
def test_the_transcoder(name: str) -> None:
    form: dict[str, Any] = {"n_layers": 2, "d_model": 8, "n_features": 16}
    for value in (1.5, 8.0, True):
        with pytest.raises(UserError, match=f"{name} must be a whole number, got {value}"):
            cl.CrossLayerTranscoder(**(form | {name: value}))


SETTINGS = [
    *(getattr(settings, name) for name in settings.__all__ if name.endswith("Config")),
    losses.L1Config,
    losses.TanhConfig,
    losses.PreActivationConfig,
    losses.AuxKConfig,
    losses.CascadeConfig,
    CascadeOptions,
    EvaluateOptions,
    FaithfulnessOptions,
    FeatureOptions,
    PopulationOptions,
]
#: type in a signature -> values that are not of it
NOT = {"int": (1.5, True, "3"), "float": ("3", True, float("nan")), "bool": (1, "true"), "str": (3,)}
FIELDS = [
    pytest.param(cls, field.name, value, id=f"{cls.__name__}.{field.name}={value}")
    for cls in SETTINGS
    for field in dataclasses.fields(cls)
    for value in NOT.get(str(field.type).removesuffix(" | None"), ())
]


@pytest.mark.parametrize(("cls", "name", "value"), FIELDS)
def test_every_setting(cls: type, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"{name} must be .*got"):
        cls(**{name: value})


def test_settings_are_many() -> None:
    assert len(FIELDS) > 100
