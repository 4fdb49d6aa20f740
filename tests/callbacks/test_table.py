"""The table on the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from clt_lightning.analysis.intervals import Interval
from clt_lightning.callbacks import Reconstruction, Table, ZeroShot
from clt_lightning.callbacks.evaluate import logit_lines
from clt_lightning.callbacks.table import reconstruction_lines, share_lines, zero_shot_lines

from .world import Made, module, trainer


def numbers(layers: int = 2, sets: tuple[str, ...] = ("cls", "patch", "all")) -> dict[str, float]:
    out: dict[str, float] = {}
    for number, name in enumerate(sets):
        for kind, value in {"fvu": 0.0625, "cosine": 0.9876, "l0": 63.96, "dead": 0.1234}.items():
            for layer in range(layers):
                out[f"{kind}/{name}/layer_{layer:02d}"] = value + number
            out[f"{kind}/{name}"] = value + number
    return out


def test_the_layout() -> None:
    assert reconstruction_lines(numbers(1, ("patch", "all"))) == [
        "      ------- patch tokens --------  -------- all tokens ---------",
        "layer     FVU  cosine      L0   dead     FVU  cosine      L0   dead",
        "   00  0.0625  0.9876    64.0  12.3%  1.0625  1.9876    65.0 112.3%",
        " mean  0.0625  0.9876    64.0  12.3%  1.0625  1.9876    65.0 112.3%",
    ]


def test_it_fits_on_a_terminal_even_with_monstrous_numbers() -> None:
    metrics = numbers(24)
    for tag, value in metrics.items():
        metrics[tag] = {"fvu": 1e12 * value, "cosine": -1.0, "l0": 99999.9, "dead": 1.0}[tag.split("/")[0]]
    metrics["fvu/all/layer_03"] = float("inf")
    lines = reconstruction_lines(metrics)
    assert len(lines) == 2 + 24 + 1
    assert max(map(len, lines)) <= 98
    assert all(len(line.split()) == 13 for line in lines[2:])


def test_zero_shot_gaps_are_in_points() -> None:
    metrics = {
        "zero_shot/original": 0.9123,
        "zero_shot/kl/0-3/all": 0.5,
        "zero_shot/replaced/0-3/all": 0.9,
        "zero_shot/replaced/2-3/cls": 0.95,
        "zero_shot/mean_ablated": 0.1,
    }
    assert zero_shot_lines(metrics) == [
        "zero-shot                              top-1            gap        KL",
        "original                             91.23 %",
        "layers 0-3 replaced at all tokens    90.00 %   -1.23 points    0.5000",
        "layers 2-3 replaced at cls tokens    95.00 %   +3.77 points",
        "all MLPs at their mean output        10.00 %  -81.23 points",
    ]


def test_who_makes_the_reconstruction() -> None:
    metrics = {"share/features": 0.25, "share/skip": 0.75, "share/features/cls": 1.1, "share/features/all": 0.25}
    metrics |= {"share/features/all/layer_00": 0.3, "share/features/all/layer_01": 0.2}
    metrics |= {"share/margin/features": 0.12, "share/margin/skip": 0.41, "share/margin/attention": 0.4}
    assert share_lines(metrics) == [
        "who makes it                             features       skip",
        "reconstruction, cls tokens                110.0 %    -10.0 %",
        "reconstruction, all tokens                 25.0 %     75.0 %",
        "reconstruction, all tokens, layer 00       30.0 %     70.0 %",
        "reconstruction, all tokens, layer 01       20.0 %     80.0 %",
        "margin over the runner-up                  12.0 %     41.0 %",
    ]
    plain = share_lines({"share/features": 1.0, "share/skip": 0.0})
    assert plain[1].split() == ["reconstruction,", "all", "tokens", "100.0", "%", "0.0", "%"]


def test_who_makes_logit_and_margin() -> None:
    parts = ("embedding", "attention", "features", "skip", "bias", "error", "norm_bias", "sum")
    values = {"logit": (1, 10, 20, 60, 4, 4, 1, 100), "margin": (0, 1, 3, -1, 0, 1, 0, 4)}
    lines = logit_lines(
        {t: {p: Interval(v, v, v) for p, v in zip(parts, row, strict=True)} for t, row in values.items()}
    )
    assert lines[0].split() == ["who", "makes", "it", "logit", "share", "margin", "share"]
    assert lines[3].split() == ["features", "20.00", "20.0", "%", "3.00", "75.0", "%"]
    assert lines[4].split() == ["skip", "60.00", "60.0", "%", "-1.00", "-25.0", "%"]
    assert lines[-1].split() == ["together", "100.00", "100.0", "%", "4.00", "100.0", "%"]
    assert max(map(len, lines)) <= 80


def test_nothing_measured_prints_nothing() -> None:
    assert reconstruction_lines({}) == []
    assert share_lines({}) == []
    assert zero_shot_lines({"fvu/all": 1.0}) == []


def test_it_is_printed_at_the_end_of_validation_and_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = trainer(tmp_path, Reconstruction(), ZeroShot(), Table(), num_sanity_val_steps=1)
    runner.fit(module(), datamodule=Made())
    out = capsys.readouterr().out
    assert out.count("validation, step 4") == 1
    assert "sanity" not in out.lower()
    assert out.count("layers 0-2 replaced at all tokens") == 1
    told = [" ".join(line.split()) for line in out.splitlines()]
    assert told.count("reconstruction, all tokens 100.0 % 0.0 %") == 1
    runner.test(module(), datamodule=Made(), verbose=False)
    assert "test, step" in capsys.readouterr().out
