"""The prior on use: its probabilities, its penalty, what it does to planted studies, and its state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.planted_studies import NAMES, Studies, held_against, train
from clt_lightning.core.errors import UserError
from clt_lightning.training.losses import LossConfig, LossInputs, loss_parts
from clt_lightning.training.priors import MultiStudy
from clt_lightning.training.settings import from_plain, to_plain
from clt_lightning.transcoder import Codes, CrossLayerTranscoder, TopK
from clt_lightning.transcoder.requests import CLTOutput


def small(features: int = 6) -> CrossLayerTranscoder:
    clt = CrossLayerTranscoder(2, 5, features, TopK(2), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for W in clt.W_dec:
            W.copy_(torch.randn(W.shape, generator=generator))
    return clt


def attached(clt: CrossLayerTranscoder, steps: int = 10, **options: Any) -> MultiStudy:
    prior = MultiStudy(**{"start": 0.0, "warmup_fraction": 0.0, "memory": 0.0, **options})
    prior.studies = NAMES
    prior.attach(clt)
    prior.check_length(steps)
    return prior


def given(clt: CrossLayerTranscoder, codes: Tensor, studies: Tensor) -> LossInputs:
    y = torch.zeros(2, codes.shape[1], 5)
    return LossInputs(clt, y, CLTOutput(y, Codes.from_dense(codes)), study=studies)


def made() -> tuple[Tensor, Tensor]:
    """Codes of 80 tokens: feature 0 is of both sets, 1 of the first, 2 of the second, 3 nearly so, 4 and 5 never on."""
    studies = torch.arange(80) % 2
    codes = torch.zeros(2, 80, 6)
    codes[:, :, 0] = 1.0
    codes[:, studies == 0, 1] = 2.0
    codes[:, studies == 1, 2] = 0.5
    codes[:, studies == 1, 3] = 1.0
    codes[:, 0, 3] = 0.2
    return codes, studies


def test_inclusion_follows_use_and_not_its_scale() -> None:
    clt, (codes, studies) = small(), made()
    prior = attached(clt)
    for scale in (1.0, 7.0):
        prior.value(given(clt, scale * codes, studies))
        prior.after_step(0, 10, 0.1)
        p = prior.p[0]
        assert (p[0] > 0.5).all()
        assert p[1, 0] > 0.9 > 0.1 > p[1, 1]
        assert p[2, 1] > 0.9 > 0.1 > p[2, 0]
        assert p[3, 1] > 0.9 > 0.2 > p[3, 0] > p[2, 0]
        assert p[4:].tolist() == [[1.0, 1.0]] * 2  # nothing is known of what was never on
        torch.testing.assert_close(prior.use()[0, 1], torch.tensor([2.0, 0.0]).sqrt())
    assert prior.measures()["sets"].item() == pytest.approx(5 / 4)
    assert prior.measures()["one_set"].item() == pytest.approx(3 / 4)


def test_a_code_pays_what_its_set_is_to_the_feature() -> None:
    clt, (codes, studies) = small(), made()
    prior = attached(clt, lambda0=8.0, lambda1=0.25)
    prior.value(given(clt, codes, studies))
    prior.after_step(0, 10, 0.1)
    leaf = codes.clone().requires_grad_()
    value = prior.value(given(clt, leaf, studies))
    rates = 0.25 * prior.p + 8.0 * (1 - prior.p)
    norms = clt.decoder_norms()
    want = torch.stack([codes[i].abs() * norms[i] * rates[i][:, studies].T for i in range(2)]).sum(2).mean()
    torch.testing.assert_close(value, want)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert gradient[0, 0, 3] > 4 * gradient[0, 1, 3] > 0  # in the set that it is not of, and in its own


def test_before_its_start_it_watches_and_costs_nothing() -> None:
    clt, (codes, studies) = small(), made()
    prior = attached(clt, start=0.5)
    for step in range(4):
        assert float(prior.value(given(clt, codes, studies)).detach()) == 0
        prior.after_step(step, 10, 0.1)
    assert bool((prior.p == 1).all())
    prior.value(given(clt, codes, studies))
    prior.after_step(4, 10, 0.1)  # the next one is at half of the run
    assert bool((prior.p != 1).any())
    assert float(prior.value(given(clt, codes, studies)).detach()) > 0


def test_chunks_of_a_batch_are_the_batch() -> None:
    clt, (codes, studies) = small(), made()
    one, two = attached(clt), attached(clt)
    one.value(given(clt, codes, studies))
    for part in (slice(0, 30), slice(30, 80)):
        two.value(given(clt, codes[:, part], studies[part]))
    for prior in (one, two):
        prior.after_step(0, 10, 0.1)
    torch.testing.assert_close(one.p, two.p)
    torch.testing.assert_close(one.theta, two.theta)


def test_planted_studies_come_apart() -> None:
    """Codes that stray into the study that a feature is not of are pushed to zero; what both share stays in both."""
    data = Studies.of(6, leak=0.0, n_layers=1, d_model=16, n_features=15)
    options: dict[str, Any] = {"n_features": 15, "k": 2, "tokens": 128, "lr": 1e-2}
    prior = MultiStudy(warmup_fraction=0.2)
    before = held_against(data, train(data, None, 200, 6, **options))
    after = held_against(data, train(data, prior, 200, 6, **options), prior)
    assert after.kinds > before.kinds + 0.2
    assert after.auc >= before.auc
    assert after.inclusion > 0.95
    assert after.matched > 0.8
    assert max(after.fvu) < 1.2 * max(before.fvu)


def test_a_state_goes_on_in_another_process() -> None:
    clt, (codes, studies) = small(), made()
    one, two = attached(clt, memory=0.9), MultiStudy(start=0.0, warmup_fraction=0.0, memory=0.9)
    one.value(given(clt, codes, studies))
    one.after_step(0, 10, 0.1)
    two.load_state_dict(one.state_dict())
    two.studies = NAMES
    two.attach(clt)
    two.check_length(10)
    for prior in (one, two):
        prior.value(given(clt, codes.flip(1), studies))
        prior.after_step(1, 10, 0.1)
    assert torch.equal(one.p, two.p)
    assert torch.equal(one.theta, two.theta)
    other = MultiStudy()
    other.load_state_dict(one.state_dict())
    other.studies = ("first", "third")
    with pytest.raises(UserError, match="of the sets first, second, the run's are first, third"):
        other.attach(clt)
    wrong = MultiStudy()
    wrong.load_state_dict(one.state_dict())
    wrong.studies = NAMES
    with pytest.raises(UserError, match=r"is for features .* \(6, 2, 2\)"):
        wrong.attach(small(8))


def test_one_set_and_bad_settings_are_named() -> None:
    with pytest.raises(UserError, match="the run's data are one set"):
        MultiStudy().attach(small())
    prior = attached(small())
    with pytest.raises(UserError, match="study is 2, and there are 2"):
        prior.value(given(small(), torch.ones(2, 3, 6), torch.tensor([0, 1, 2])))
    with pytest.raises(UserError, match="study is -1, and there are 2"):
        prior.value(given(small(), torch.ones(2, 3, 6), torch.tensor([0, 1, -1])))
    with pytest.raises(UserError, match="needs the length of the run"):
        prior.check_length(-1)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"lambda1": 0.0}, "lambda1 must be above 0"),
        ({"lambda0": 0.1}, "lambda0 must be lambda1 or more"),
        ({"start": 1.0}, "start must be from 0 to below 1"),
        ({"memory": 1.0}, "memory must be from 0 to below 1"),
        ({"b": 0.5}, "b must be 1 or more"),
    )
    for arguments, said in cases:
        with pytest.raises(UserError, match=said):
            MultiStudy(**arguments)


def test_it_is_made_from_a_config_and_stands_beside_one_on_the_weights() -> None:
    extra = [{"class_path": "MultiStudy", "init_args": {"coefficient": 0.02}}, {"class_path": "SparseDecoding"}]
    config = from_plain(LossConfig, {"extra": extra})
    assert [type(prior).__name__ for prior in config.priors()] == ["MultiStudy", "SparseDecoding"]
    assert [term.name for term in config.terms()] == ["multi_study"]
    assert config.needs("studies")
    assert from_plain(LossConfig, to_plain(config)).extra == config.extra


def test_the_loss_names_what_it_lacks() -> None:
    clt = small()
    prior = attached(clt)
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    parts = loss_parts(LossConfig(extra=[prior]), clt, x, clt(x), 0, studies=torch.tensor([0, 1, 0, 1]))
    assert parts["multi_study"].requires_grad
