"""NaN and infinity: the step and the layer are named, and the last good checkpoint stays."""

from __future__ import annotations

import math

import pytest
import torch

from clt_lightning.core.errors import UserError
from clt_lightning.runs.finite import FiniteWatch, message, not_finite


def step(**poison: tuple[int, float]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    tensors = {name: torch.ones(4, 6, 3) for name in ("x", "y", "y_hat")}
    for name, (layer, value) in poison.items():
        tensors[name][layer, 5, 1] = value
    return tensors, sum(t.sum() for t in tensors.values())  # type: ignore[return-value]


def test_a_finite_step_passes() -> None:
    tensors, loss = step()
    FiniteWatch().look(0, loss, {"reconstruction": loss}, **tensors)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_step_and_layer_are_named(value: float) -> None:
    tensors, loss = step(x=(2, value), y_hat=(3, value))
    with pytest.raises(
        UserError, match=r"step 17: .*MLP inputs \(x\) of layer 2 hold.*last checkpoint.*precision: fp32"
    ):
        FiniteWatch().look(17, loss, {"reconstruction": loss}, **tensors)
    tensors, loss = step(y=(0, value))
    with pytest.raises(UserError, match=r"MLP outputs \(y\) of layer 0 hold"):
        FiniteWatch().look(17, loss, {"reconstruction": loss}, **tensors)
    tensors, loss = step(y_hat=(1, value))
    with pytest.raises(UserError, match=r"reconstruction \(y_hat\) of layer 1 hold.*gradient_clip_val"):
        FiniteWatch().look(17, loss, {"reconstruction": loss}, **tensors)


def test_a_nan_that_the_loss_does_not_show_is_found() -> None:
    tensors, _ = step(x=(1, math.nan))
    with pytest.raises(UserError, match=r"MLP inputs \(x\) of layer 1 hold"):
        FiniteWatch().look(17, torch.tensor(1.0), {"reconstruction": torch.tensor(1.0)}, **tensors)


def test_a_part_of_the_loss_is_named() -> None:
    tensors, _ = step()
    with pytest.raises(UserError, match=r"step 3: the loss is nan \(part: auxk\)"):
        FiniteWatch().look(
            3, torch.tensor(math.nan), {"r": torch.tensor(1.0), "auxk": torch.tensor(math.nan)}, **tensors
        )


def test_several_layers_are_listed() -> None:
    told = message(1, math.nan, {}, {"x": [1, 1, 1], "y": [1, 1, 1], "y_hat": [math.nan, 1, math.inf]})
    assert told is not None
    assert "layers 0, 2" in told


def test_not_finite_names_the_tensors() -> None:
    weights = {"a": torch.ones(3, 2), "b": torch.ones(5), "n": torch.ones(2, dtype=torch.int64), "e": torch.empty(0)}
    assert not_finite(weights.items()) == []
    weights["b"][4] = math.inf
    weights["a"][0, 1] = math.nan
    assert not_finite(weights.items()) == ["a", "b"]
    assert not_finite({"h": torch.full((2,), math.nan, dtype=torch.bfloat16)}.items()) == ["h"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_told_a_few_steps_later_with_the_right_step() -> None:
    watch = FiniteWatch()

    def steps() -> None:
        for number in range(200):
            tensors, loss = step(**({"y_hat": (1, math.nan)} if number == 2 else {}))
            cuda = {name: t.cuda() for name, t in tensors.items()}
            watch.look(number, loss.cuda(), {"reconstruction": loss.cuda()}, **cuda)
            torch.cuda.synchronize()

    with pytest.raises(UserError, match=r"step 2: .*layer 1 hold"):
        steps()
