"""Parts of the module that need no run: schedule, buffer, settings, replacement."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clt_lightning as cl
from clt_lightning.analysis import Observation, observe
from clt_lightning.core.errors import UserError
from clt_lightning.training.buffer import ActivationBuffer
from clt_lightning.training.losses import CascadeConfig
from clt_lightning.training.losses.cascade import cascade_parts
from clt_lightning.training.schedule import lr_factor
from clt_lightning.training.settings import LossConfig, ScheduleConfig, TranscoderConfig, from_plain, to_plain
from clt_lightning.transcoder.decoders import Topology
from tests.gradients import gradient


def test_schedule_rises_holds_and_falls() -> None:
    factor = lr_factor(ScheduleConfig(warmup_steps=10, decay="linear", decay_fraction=0.2), 100)
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == factor(50) == factor(80) == 1.0
    assert factor(90) == pytest.approx(0.5)
    assert factor(100) == 0.0
    cosine = lr_factor(ScheduleConfig(decay="cosine", decay_fraction=1.0, final_factor=0.1), 100)
    assert cosine(50) == pytest.approx(0.55)
    assert cosine(100) == pytest.approx(0.1)


def test_schedule_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"set trainer\.max_steps"):
        lr_factor(ScheduleConfig(), -1)
    assert lr_factor(ScheduleConfig(warmup_steps=1000), 5)(4) == pytest.approx(5 / 1000)  # a trial of a long recipe
    assert lr_factor(ScheduleConfig(decay="none"), -1)(10**6) == 1.0


def test_a_warm_up_longer_than_the_run_is_said_once() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for step in range(3):  # as a run by epochs does
            lr_factor(ScheduleConfig(warmup_steps=70), 7)(step)
        lr_factor(ScheduleConfig(warmup_steps=70), 7)
    assert [str(warning.message) for warning in told] == [
        "model.schedule.warmup_steps (70) exceeds trainer.max_steps (7): its rate is never reached"
    ]


@settings(max_examples=30, deadline=None)
@given(capacity=st.integers(4, 20), batch=st.integers(1, 4), steps=st.integers(1, 30), seed=st.integers(0, 999))
def test_the_buffer_hands_out_every_token_once_when_full(capacity: int, batch: int, steps: int, seed: int) -> None:
    buffer = ActivationBuffer(capacity)
    generator = torch.Generator().manual_seed(seed)
    seen: list[int] = []
    full_at = None
    for step in range(steps):
        tokens = torch.arange(step * batch, (step + 1) * batch, dtype=torch.float32)
        was_full = buffer.size == capacity
        x, y = buffer.exchange(tokens.view(1, -1, 1), -tokens.view(1, -1, 1), generator)
        assert torch.equal(x, -y)
        assert x.shape[1] == batch
        if was_full:
            full_at = step if full_at is None else full_at
            seen += x.flatten().int().tolist()
    assert len(seen) == len(set(seen))


def test_the_buffer_resumes_where_it_was() -> None:
    one, other = ActivationBuffer(10), ActivationBuffer(10)
    for step in range(5):
        one.exchange(torch.full((2, 3, 4), float(step)), torch.zeros(2, 3, 4), torch.Generator().manual_seed(step))
    other.load_state_dict(one.state_dict(), "cpu")
    new = torch.ones(2, 3, 4)
    a, b = (buffer.exchange(new, new, torch.Generator().manual_seed(9))[0] for buffer in (one, other))
    assert torch.equal(a, b)
    with pytest.raises(UserError, match=r"model\.tokens\.buffer"):
        ActivationBuffer(11).load_state_dict(one.state_dict(), "cpu")
    with pytest.raises(UserError, match="make it larger"):
        one.exchange(torch.ones(2, 11, 4), torch.ones(2, 11, 4), torch.Generator())


def test_settings_survive_being_plain() -> None:
    config = TranscoderConfig(n_features=10, activation=cl.JumpReLU(0.2, 0.1), topology="per_layer")
    plain = to_plain(config)
    assert to_plain(from_plain(TranscoderConfig, plain)) == plain
    loss = to_plain(LossConfig())
    assert to_plain(from_plain(LossConfig, loss)) == loss
    with pytest.raises(UserError, match="unknown keys n_feature"):
        from_plain(TranscoderConfig, {"n_feature": 3})


@pytest.fixture(scope="module")
def clip() -> cl.FrozenCLIP:
    return cl.FrozenCLIP(pretrained="demo")


@pytest.fixture(scope="module")
def images(clip: cl.FrozenCLIP) -> torch.Tensor:
    return torch.randn(5, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))


def perfect(clip: cl.FrozenCLIP) -> cl.CrossLayerTranscoder:
    """An SAE with the identity as dictionary: rebuilds the MLP output exactly."""
    clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, 2 * clip.d_model, cl.ReLU(), topology="sae")
    eye = torch.eye(clip.d_model)
    with torch.no_grad():
        for layer in range(clip.n_layers):
            clt.W_enc[layer].copy_(torch.cat([eye, -eye]))
            clt.W_dec[layer].copy_(torch.cat([eye, -eye])[:, None])
    return clt


@pytest.mark.parametrize("tokens", ["all", "cls", "patch"])
def test_a_perfect_replacement_changes_nothing(clip: cl.FrozenCLIP, images: torch.Tensor, tokens: str) -> None:
    original = clip.encode_image(images)
    with cl.replaced(clip, perfect(clip), tokens=tokens):
        rebuilt = clip.encode_image(images)
    torch.testing.assert_close(rebuilt, original, rtol=1e-5, atol=1e-5)


def test_replacement_is_cascaded_and_in_its_window_only(clip: cl.FrozenCLIP, images: torch.Tensor) -> None:
    """Against hand-set hooks: layers in the window get the reconstruction from the x of the running stream."""
    clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, 64, cl.TopK(8), seed=1)
    with torch.no_grad():
        for i, W in enumerate(clt.W_dec):
            W.normal_(std=0.1, generator=torch.Generator().manual_seed(i))
    window = range(1, clip.n_layers - 1)
    with cl.replaced(clip, clt, layers=window, tokens="all") as trace:
        acts = clip.capture(images, embeddings=True)
        ours = clip.encode_image(images)
    assert sorted(trace.y_hat) == list(window)
    # x is read from the modified stream, so the training forward on it gives the same reconstruction
    y_hat = clt(acts.x).y_hat
    torch.testing.assert_close(acts.y[list(window)], y_hat[list(window)], rtol=1e-4, atol=1e-5)
    untouched = clip.capture(images)
    torch.testing.assert_close(acts.x[:2], untouched.x[:2])
    assert not torch.allclose(acts.x[2], untouched.x[2])
    torch.testing.assert_close(ours, acts.embeddings)


@pytest.mark.parametrize(("topology", "read"), [("cross_layer", [0, 1, 2]), ("per_layer", [2]), ("sae", [2])])
def test_only_layers_that_write_into_the_window_are_read(
    clip: cl.FrozenCLIP, images: torch.Tensor, topology: Topology, read: list[int]
) -> None:
    clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, 64, cl.TopK(8), topology, seed=1)
    with cl.replaced(clip, clt, layers=[2]) as trace:
        clip.encode_image(images)
    assert sorted(trace.codes) == read
    assert sorted(trace.y_hat) == [2]


def test_token_sets_leave_the_other_tokens_alone(clip: cl.FrozenCLIP, images: torch.Tensor) -> None:
    clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, 64, cl.TopK(8), seed=1)  # zero decoders
    untouched = clip.capture(images).y[0].view(5, clip.n_positions, -1)
    with cl.replaced(clip, clt, layers=[0], tokens="cls"):
        y = clip.capture(images).y[0].view(5, clip.n_positions, -1)
    assert (y[:, 0] == 0).all()
    torch.testing.assert_close(y[:, 1:], untouched[:, 1:])
    with cl.replaced(clip, clt, layers=[0], tokens="patch"):
        y = clip.capture(images).y[0].view(5, clip.n_positions, -1)
    assert (y[:, 1:] == 0).all()
    torch.testing.assert_close(y[:, 0], untouched[:, 0])


def test_replacements_and_captures_leave_nothing_behind(clip: cl.FrozenCLIP, images: torch.Tensor) -> None:
    before = clip.encode_image(images)
    clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, 64, cl.TopK(8))

    def interrupted() -> None:
        with cl.replaced(clip, clt), cl.replaced(clip, clt, layers=[1]):
            clip.capture(images)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert torch.equal(clip.encode_image(images), before)
    for module in clip.model.modules():
        assert not module._forward_hooks
        assert "forward" not in vars(module)


def test_gradients_flow_through_a_replacement(clip: cl.FrozenCLIP, images: torch.Tensor) -> None:
    clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, 64, cl.TopK(8), seed=1)
    with cl.replaced(clip, clt, grad=True):
        clip.encode_image(images, grad=True)[:, 0].sum().backward()
    assert gradient(clt.W_dec[0]).abs().sum() > 0
    assert gradient(clt.b_dec).abs().sum() > 0
    with cl.replaced(clip, clt):
        assert not clip.encode_image(images).requires_grad


def test_a_transcoder_of_another_model_is_refused(clip: cl.FrozenCLIP) -> None:
    clt = cl.CrossLayerTranscoder(clip.n_layers + 1, clip.d_model, 64)
    with pytest.raises(UserError, match="layers of width"), cl.replaced(clip, clt):
        pass


def test_a_batch_without_images(clip: cl.FrozenCLIP) -> None:
    """An evaluation with fewer samples than processes ends in one."""
    nothing = torch.zeros(0, 3, clip.image_size, clip.image_size)
    acts = clip.capture(nothing, embeddings=True)
    for activation in (cl.TopK(4), cl.BatchTopK(4), cl.JumpReLU(), cl.ReLU()):
        clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, 64, activation).eval()
        out = clt(acts.x)
        assert out.y_hat.shape == (clip.n_layers, 0, clip.d_model)
        assert out.codes.l0().shape == (clip.n_layers, 0)
        assert not out.codes.fired().any()
        with cl.replaced(clip, clt):
            assert clip.encode_image(nothing).shape == (0, clip.embed_dim)


def after_blocks(clip: cl.FrozenCLIP, seen: Observation) -> list[torch.Tensor]:
    """The stream after each block: what came in, what attention added, what the MLP added."""
    y = seen.y.unflatten(1, (seen.n_images, -1))
    return [seen.before_mlp[layer] + y[layer] for layer in range(clip.n_layers)]


def test_cascade_terms_see_the_replaced_model(clip: cl.FrozenCLIP, images: torch.Tensor) -> None:
    """Against the definition; a perfect replacement costs nothing; a step down the gradient lowers the loss."""
    config = CascadeConfig(embedding=2.0, reconstruction=0.5, stream=0.3)
    assert all(float(v.detach()) < 1e-5 for v in cascade_parts(clip, perfect(clip), images, config).values())
    clt = cl.CrossLayerTranscoder(clip.n_layers, clip.d_model, 64, cl.TopK(8), seed=1)
    clt.y_var.copy_(clip.capture(images).y.square().sum(2).mean(1))
    parts = cascade_parts(clip, clt, images, config)
    clean = observe(clip, images, range(clip.n_layers))
    with cl.replaced(clip, clt):
        replaced_embeddings = clip.encode_image(images)
        cascade = observe(clip, images, range(clip.n_layers))
    by_hand = 2 * (1 - (replaced_embeddings * clip.encode_image(images)).sum(1)).mean()
    assert float(parts["cascade_embedding"].detach()) == pytest.approx(float(by_hand), rel=1e-5)
    # zero decoders add nothing: the error is all of y
    assert float(parts["cascade_reconstruction"].detach()) == pytest.approx(0.5, rel=1e-4)
    errors = [
        (b - a).square().sum(2).mean() / clt.y_var[layer]
        for layer, (a, b) in enumerate(zip(after_blocks(clip, clean), after_blocks(clip, cascade)))
    ]
    assert float(parts["cascade_stream"].detach()) == pytest.approx(0.3 * float(torch.stack(errors).mean()), rel=1e-5)
    torch.stack(list(parts.values())).sum().backward()
    with torch.no_grad():
        for parameter in clt.parameters():
            if parameter.grad is not None:
                parameter.sub_(1e-3 * parameter.grad)
    after = cascade_parts(clip, clt, images, config)
    assert sum(float(v.detach()) for v in after.values()) < sum(float(v.detach()) for v in parts.values())


def test_the_cascade_begins_and_rises_at_its_share_of_the_run() -> None:
    config = CascadeConfig(stream=0.5, start=0.25, warmup=0.2)
    assert [config.strength(step, 100) for step in (0, 24, 25, 34, 44, 45, 99)] == [
        0,
        0,
        pytest.approx(1 / 20),
        pytest.approx(10 / 20),
        1,
        1,
        1,
    ]
    assert CascadeConfig(stream=0.5, start=0.25, warmup=0.0).strength(25, 100) == 1  # at full weight at once
    assert config.strength(0, -1) == 1  # a run without a length
    assert CascadeConfig(stream=0.0, embedding=0.0, warmup=0.2).strength(99, 100) == 0
    with pytest.raises(UserError, match="start and warmup in"):
        LossConfig(cascade=CascadeConfig(stream=0.5, warmup=1.5))
