"""Priors on the decoder's groups: the planted depth support comes out, late steps equal early ones, runs resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.training.losses import LossConfig, reconstruction_loss
from clt_lightning.training.optim import AdamW, RowSparseAdam
from clt_lightning.training.priors import GroupL1, GroupPruning, SparseDecoding, WeightPrior
from clt_lightning.training.priors.layer import LayerState, Rates
from clt_lightning.training.settings import from_plain, to_plain
from clt_lightning.transcoder import CrossLayerTranscoder, TopK
from clt_lightning.transcoder.support import depth_support, group_norms, prune_groups, relative_norms


def small(topology: Any = "cross_layer", layers: int = 3) -> CrossLayerTranscoder:
    clt = CrossLayerTranscoder(layers, 6, 10, TopK(2), topology, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for W in clt.W_dec:
            W.copy_(torch.randn(W.shape, generator=generator))
    return clt


def train(clt: CrossLayerTranscoder, prior: WeightPrior | None, optimizer: Any, steps: int, quiet: int = 0) -> None:
    """Some steps; features below `quiet` can fire in every seventh of them only."""
    if prior is not None:
        prior.attach(clt)
    for step in range(steps):
        generator = torch.Generator().manual_seed(100 + step)
        x = torch.randn(3, 4, 6, generator=generator)
        y = torch.randn(3, 4, 6, generator=generator)
        with torch.no_grad():
            clt.b_enc[:, :quiet] = 0.0 if step % 7 == 6 else -50.0
        optimizer.zero_grad(set_to_none=True)
        reconstruction_loss(y, clt(x).y_hat, torch.ones(3), None).backward()
        optimizer.step()
        if prior is not None:
            prior.after_step(step, steps, optimizer.param_groups[0]["lr"])
    if prior is not None:
        prior.detach()


def test_inclusion_is_that_of_the_two_densities() -> None:
    rates, theta = Rates(0.5, 10.0), torch.tensor([0.3, 0.7])
    g = torch.tensor([[0.0, 0.2], [1.0, 3.0]])
    slab = theta * 0.5 * torch.exp(-0.5 * g)
    spike = (1 - theta) * 10.0 * torch.exp(-10.0 * g)
    torch.testing.assert_close(rates.inclusion(g, theta), slab / (slab + spike))


def test_the_step_is_a_group_soft_threshold_with_exact_zeros() -> None:
    W = torch.tensor([[[3.0, 4.0], [0.3, 0.4]]])
    state = LayerState.fresh(W)
    state.step(W, None, Rates(1.0, 1.0), (0.0, 0.0), (1.0, 1.0))
    torch.testing.assert_close(W, torch.tensor([[[2.4, 3.2], [0.0, 0.0]]]))
    assert state.alive.tolist() == [[True, False]]


@pytest.mark.parametrize("mode", ["lazy", "exact"])
def test_steps_made_late_equal_those_made_at_once(mode: Any) -> None:
    made = []
    for lazy in (True, False):
        clt = small()
        clt.b_enc.requires_grad_(False)
        # a row at rest is one that the optimizer leaves alone: with betas of 0.1 after a few steps in either mode
        optimizer = RowSparseAdam(
            [p for p in clt.parameters() if p.requires_grad],
            lr=0.02,
            betas=(0.1, 0.9),
            catch_up=mode,
            dense_above=1.0,
        )
        prior = SparseDecoding(0.05, start=0.1, warmup_fraction=0.5, refit=0.2, lazy=lazy)
        late: list[bool] = []
        step = prior.after_step

        def watched(*given: Any, step: Any = step, prior: Any = prior, late: list[bool] = late) -> None:
            step(*given)
            late.append(any(layer.is_behind for layer in prior.layers))

        prior.after_step = watched  # type: ignore[method-assign,assignment]
        train(clt, prior, optimizer, 120, quiet=5)
        assert any(late) == lazy
        made.append(clt)
    zeros = 0
    for a, b in zip(made[0].W_dec, made[1].W_dec):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
        zeros += int((a.norm(dim=2) == 0).sum())
    for a, b in zip(made[0].W_enc, made[1].W_enc):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
    assert 0 < zeros < sum(W.shape[0] * W.shape[1] for W in made[0].W_dec)


def test_inclusion_does_not_depend_on_the_scale_of_a_decoder() -> None:
    norms = torch.rand(5, 3)
    torch.testing.assert_close(relative_norms(7.0 * norms), relative_norms(norms))
    assert relative_norms(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    torch.testing.assert_close(relative_norms(norms).square().mean(1), torch.ones(5))


def test_the_refit_holds_zeros_and_lengthens_what_is_left() -> None:
    clt = small()
    optimizer = AdamW(clt.parameters(), lr=0.02)
    prior = SparseDecoding(0.1, start=0.0, warmup_fraction=0.2, refit=0.5)
    held: list[Tensor] = []
    original = prior.after_step

    def watched(step: int, steps: int, lr: float) -> None:
        original(step, steps, lr)
        held.append(torch.cat([group_norms(clt, i).flatten() == 0 for i in range(3)]))

    prior.after_step = watched  # type: ignore[method-assign,assignment]
    train(clt, prior, optimizer, 100)
    assert held[-1].any()
    assert all(torch.equal(now, held[-1]) for now in held[50:])
    assert clt.before_read is None


def test_support_pruning_and_anchors() -> None:
    clt = small()
    with torch.no_grad():
        clt.W_dec[0][2, 1:] = 0
        clt.W_dec[1][3] = 0
    support = depth_support(clt)
    assert support.targets(0, 2) == [0]
    assert support.targets(1, 3) == []
    assert support.targets(1, 0) == [1, 2]
    assert support.anchors().nonzero().tolist() == [[0, 2]]
    assert support.n_groups == 60 - 4
    assert support.mean_groups == pytest.approx(56 / 29)
    left = prune_groups(clt, keep=0.5)
    assert left.n_groups == 30 == depth_support(clt).n_groups
    with pytest.raises(UserError, match="keep"):
        prune_groups(clt, keep=0.5, below=0.1)
    with pytest.raises(UserError, match="keep must be above 0"):
        prune_groups(clt, keep=0.0)


def test_a_state_goes_to_another_process() -> None:
    a, b = small(), small()
    prior = SparseDecoding(0.1, start=0.0, refit=0.3)
    optimizer = AdamW(a.parameters(), lr=0.02)
    train(a, prior, optimizer, 30)
    other = SparseDecoding(0.1, start=0.0, refit=0.3)
    other.load_state_dict(prior.state_dict())
    other.attach(b)
    for mine, theirs in zip(prior.layers, other.layers):
        assert torch.equal(mine.p, theirs.p)
        assert torch.equal(mine.alive, theirs.alive)
        assert torch.equal(mine.theta, theirs.theta)
    wrong = SparseDecoding()
    wrong.load_state_dict(prior.state_dict())
    with pytest.raises(UserError, match="is for groups"):
        wrong.attach(CrossLayerTranscoder(3, 6, 12, TopK(2), seed=0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"lambda1": 0.0}, "lambda1 must be above 0"),
        ({"lambda0": 0.1}, "lambda0 must be lambda1 or more"),
        ({"a": 0.5}, "a must be 1 or more"),
        ({"refit": 0.95}, "refit must be from 0 to below 1 - start"),
        ({"start": 1.0}, "start must be from 0 to below 1"),
        ({"lambda0": "big"}, "lambda0"),
    ],
)
def test_bad_settings_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SparseDecoding(**arguments)


def test_features_with_one_target_are_refused() -> None:
    with pytest.raises(UserError, match="write to one"):
        SparseDecoding().attach(small("per_layer"))


def test_it_is_made_from_a_config_and_written_into_one() -> None:
    path = "clt_lightning.training.priors.SparseDecoding"
    config = from_plain(LossConfig, {"extra": [{"class_path": path, "init_args": {"lambda0": 8.0}}]})
    assert isinstance(config.extra[0], SparseDecoding)
    assert config.extra[0].lambda0 == 8.0
    assert all(term.name != "sparse_decoding" for term in config.terms())
    again = from_plain(LossConfig, to_plain(config))
    assert again.extra[0] == config.extra[0]


def test_rows_that_never_move_again_have_a_probability_too() -> None:
    """They were updated before the prior began: a silent feature is no sure member of the slab for that."""
    clt = small()
    with torch.no_grad():
        clt.b_enc[:, 0] = -50.0  # never fires
    prior = SparseDecoding(start=0.4, refit=0.0)
    train(clt, prior, RowSparseAdam(clt.parameters(), lr=1e-3), 10)
    assert all(bool((layer.p[0] < 1).all()) for layer, W in zip(prior.layers, clt.W_dec) if W.shape[1] > 1)


def test_pruning_ends_at_its_share_and_holds_it() -> None:
    clt = small()
    with torch.no_grad():
        clt.b_enc[:, 0] = -50.0  # never fires
        clt.W_dec[0][0] = 0  # and writes nothing yet: where it will is not decided
    prior = GroupPruning(keep=0.6, start=0.2, refit=0.3, every=5)
    shares = [prior.share(step, 100) for step in range(100)]
    assert [step for step, share in enumerate(shares) if share is not None] == list(range(20, 71, 5))
    assert shares[20] == 1.0
    assert shares[70] == 0.6
    assert GroupPruning(start=0.6, refit=0.4).share(60, 100) == 0.5  # one cut
    left: list[int] = []
    original = prior.after_step

    def watched(step: int, steps: int, lr: float) -> None:
        original(step, steps, lr)
        left.append(depth_support(clt).n_groups)

    prior.after_step = watched  # type: ignore[method-assign,assignment]
    train(clt, prior, AdamW(clt.parameters(), lr=0.02), 100)
    assert left[19] == 57
    assert set(left[70:]) == {36}
    assert left[20:] == sorted(left[20:], reverse=True)
    assert bool((depth_support(clt).counts()[0, 1:] >= 1).all())
    assert prior.kept is not None
    assert bool(prior.kept[0][0].all())


def test_pruning_goes_on_from_a_state() -> None:
    a = small()
    prior = GroupPruning(keep=0.5, start=0.0, refit=0.5)
    train(a, prior, AdamW(a.parameters(), lr=0.02), 20)
    b, other = small(), GroupPruning(keep=0.5, start=0.0, refit=0.5)
    b.load_state_dict(a.state_dict())
    other.load_state_dict(prior.state_dict())
    other.attach(b)
    with torch.no_grad():
        for W in b.W_dec:
            W.add_(1.0)  # an optimizer's step
    other.after_step(15, 20, 0.02)  # after the last cut
    assert depth_support(b).n_groups == depth_support(a).n_groups == 30
    with pytest.raises(UserError, match="keep must be above 0"):
        GroupPruning(keep=0.0)
    with pytest.raises(UserError, match="write to one"):
        GroupPruning().attach(small("per_layer"))
    GroupPruning(keep=0.5).attach(small())  # 3 of 6 groups: one per feature
    with pytest.raises(UserError, match=r"GroupPruning\.keep=0\.49 would leave less than one.*take 0\.5 or more"):
        GroupPruning(keep=0.49).attach(small())  # before the first step, not at a cut
    assert GroupPruning(start=0.999, refit=0.0).share(9, 10) == 0.5  # no run is too short for its cut


@pytest.mark.parametrize("kind", [SparseDecoding, GroupL1])
def test_the_penalty_ends_where_few_enough_groups_are_left(kind: type[SparseDecoding]) -> None:
    clt = small()
    prior = kind(0.4, start=0.0, warmup_fraction=0.5, refit=0.2, until=0.7)
    train(clt, prior, AdamW(clt.parameters(), lr=0.02), 80)
    assert prior.is_done
    assert 0.3 < depth_support(clt).share <= 0.7
    again = kind(until=0.7)
    again.load_state_dict(prior.state_dict())
    again.attach(clt)
    assert again.rates(40, 80) is None  # over, whatever the step
    with pytest.raises(UserError, match="until must be above 0 and at most 1"):
        kind(until=0.0)


def test_a_run_leaves_no_negative_zeros() -> None:
    clt = small()
    train(clt, SparseDecoding(0.4, start=0.0, refit=0.2), AdamW(clt.parameters(), lr=0.02), 40)
    zeros = torch.cat([W[W == 0].flatten() for W in clt.W_dec])
    assert len(zeros)
    assert not zeros.signbit().any()


def test_a_feature_keeps_its_largest_group() -> None:
    clt = small()
    counts = prune_groups(clt, keep=29.6 / 60).counts()
    assert int(counts.min()) == 1
    with pytest.raises(UserError, match="less than one per feature"):
        prune_groups(small(), keep=0.4)
