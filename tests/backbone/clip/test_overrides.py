"""Something else in the place of the MLPs: exact while it lasts, gone without a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError

from .tiny import Maker

Compute = Callable[[], Tensor]
PATTERNS: list[dict[str, Any]] = [{}, {"ls_init_value": 0.5}, {"scale_fc": True}]


def zero(layer: int, x: Tensor, compute_y: Compute) -> Tensor:
    return torch.zeros_like(x)


def keep(layer: int, x: Tensor, compute_y: Compute) -> Tensor:
    return compute_y()


def assert_untouched(clip: FrozenCLIP) -> None:
    for module in clip.model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("vision", PATTERNS)
def test_the_own_output_put_back_changes_nothing(make_clip: Maker, images: Tensor, vision: dict[str, Any]) -> None:
    clip = make_clip(**vision)
    before = clip.encode_image(images)
    with clip.mlp_override(keep):
        assert torch.equal(clip.encode_image(images), before)
    assert_untouched(clip)


@pytest.mark.parametrize("vision", PATTERNS)
def test_the_result_equals_surgery_on_the_model(make_clip: Maker, images: Tensor, vision: dict[str, Any]) -> None:
    """Layers 1 and 2 replaced by a linear map, against a copy whose modules are exchanged for that map."""
    clip, surgery = make_clip(**vision), make_clip(**vision)
    maps = nn.ModuleList(nn.Linear(32, 32) for _ in range(3)).requires_grad_(False)
    for layer in (1, 2):
        surgery.blocks[layer].mlp = maps[layer]
        surgery.blocks[layer].ls_2 = nn.Identity()
    with clip.mlp_override(lambda layer, x, compute_y: maps[layer](x), [1, 2]):
        found = clip.capture(images, embeddings=True)
    expected = surgery.capture(images, embeddings=True)
    # capture under an override: x of the modified stream, y as it was added
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.y, expected.y)
    assert found.embeddings is not None
    assert expected.embeddings is not None
    assert torch.equal(found.embeddings, expected.embeddings)
    assert not torch.equal(found.embeddings, clip.encode_image(images))
    assert_untouched(clip)


def test_the_function_sees_layer_stream_and_own_output(clip: FrozenCLIP, images: Tensor) -> None:
    seen = {}

    def watch(layer: int, x: Tensor, compute_y: Compute) -> Tensor:
        seen[layer] = (x.flatten(0, 1), compute_y().flatten(0, 1))
        assert x.shape == (5, 17, 32)
        return compute_y()

    with clip.mlp_override(watch, [2, 0]):
        clip.encode_image(images)
    acts = clip.capture(images)
    assert sorted(seen) == [0, 2]
    for layer, (x, y) in seen.items():
        assert torch.equal(x, acts.x[layer])
        assert torch.equal(y, acts.y[layer])


def test_a_full_replacement_does_not_run_the_mlp(clip: FrozenCLIP, images: Tensor) -> None:
    calls: list[int] = []
    blocks: list[Any] = list(clip.blocks)
    handles = [b.mlp.c_fc.register_forward_hook(lambda m, a, o, i=i: calls.append(i)) for i, b in enumerate(blocks)]
    with clip.mlp_override(zero, [0, 2]):
        clip.encode_image(images)
    assert calls == [1]
    for handle in handles:
        handle.remove()


def test_the_inner_override_wins_for_its_layers(clip: FrozenCLIP, images: Tensor) -> None:
    def layers_seen(into: list[int]) -> Callable[[int, Tensor, Compute], Tensor]:
        def fn(layer: int, x: Tensor, compute_y: Compute) -> Tensor:
            into.append(layer)
            return compute_y()

        return fn

    outer: list[int] = []
    inner: list[int] = []
    plain = clip.encode_image(images)
    with clip.mlp_override(layers_seen(outer)):
        with clip.mlp_override(layers_seen(inner), [1]):
            clip.encode_image(images)
        assert (outer, inner) == ([0, 2], [1])
        clip.encode_image(images)
        assert (outer, inner) == ([0, 2, 0, 1, 2], [1])
    assert torch.equal(clip.encode_image(images), plain)
    assert_untouched(clip)


def test_contexts_may_end_in_any_order(clip: FrozenCLIP, images: Tensor) -> None:
    plain = clip.encode_image(images)
    first, second = clip.mlp_override(zero, [0, 1]), clip.mlp_override(keep, [1, 2])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(clip.encode_image(images), plain)
    second.__exit__(None, None, None)
    assert_untouched(clip)


def test_an_exception_inside_leaves_the_model_untouched(clip: FrozenCLIP, images: Tensor) -> None:
    def broken(layer: int, x: Tensor, compute_y: Compute) -> Tensor:
        raise RuntimeError("broken on purpose")

    plain = clip.encode_image(images)
    with pytest.raises(RuntimeError, match="on purpose"), clip.mlp_override(broken, [1]):
        clip.encode_image(images)
    assert_untouched(clip)
    with pytest.raises(UserError, match=r"\[7\]"), clip.mlp_override(zero, [0, 7]):
        pass
    assert_untouched(clip)
    assert torch.equal(clip.encode_image(images), plain)


def test_a_wrong_shape_names_layer_expected_and_got(clip: FrozenCLIP, images: Tensor) -> None:
    with (
        pytest.raises(UserError, match=r"layer 1.*\(5, 17, 32\), got \(5, 32\)"),
        clip.mlp_override(lambda layer, x, compute_y: x[:, 0], [1]),
    ):
        clip.encode_image(images)


def test_gradients_reach_the_replacement_and_nothing_else(clip: FrozenCLIP, images: Tensor) -> None:
    shift = torch.full((32,), 0.1, requires_grad=True)

    def fn(layer: int, x: Tensor, compute_y: Compute) -> Tensor:
        return compute_y() + shift

    def score() -> Tensor:
        return clip.encode_image(images, grad=True)[:, 0].sum()

    with clip.mlp_override(fn, [0]):
        score().backward()
        assert not clip.encode_image(images).requires_grad
        with torch.no_grad():
            assert not clip.encode_image(images, grad=True).requires_grad
            base, nudge = score(), torch.zeros(32)
            nudge[5] = 1e-2
            shift += nudge
            slope = (score() - base) / 1e-2
    assert shift.grad is not None
    torch.testing.assert_close(slope, shift.grad[5], rtol=0.05, atol=1e-3)
    assert all(p.grad is None for p in clip.model.parameters())


def test_autocast_holds_inside_the_function_and_not_around_it(clip: FrozenCLIP, images: Tensor) -> None:
    replacement = nn.Linear(32, 32)
    seen = []

    def fn(layer: int, x: Tensor, compute_y: Compute) -> Tensor:
        y: Tensor = replacement(x)
        seen.append((x.dtype, y.dtype, compute_y().dtype))
        return y

    with clip.mlp_override(fn, [1]), torch.autocast("cpu", dtype=torch.bfloat16):
        acts = clip.capture(images, embeddings=True)
    assert seen == [(torch.float32, torch.bfloat16, torch.float32)]
    assert acts.y.dtype == torch.float32
    with clip.mlp_override(fn, [1]):
        clip.capture(images)
    assert seen[1] == (torch.float32, torch.float32, torch.float32)


def test_blocks_that_run_positions_first(clip: FrozenCLIP, images: Tensor) -> None:
    """Older towers run on (positions, images, d_model): captures and overrides look the same."""
    transformer = clip.model.visual.transformer
    acts = clip.capture(images, embeddings=True)

    def half(layer: int, x: Tensor, compute_y: Compute) -> Tensor:
        assert x.shape == (5, 17, 32)
        return compute_y() * x.mean(1, keepdim=True)

    with clip.mlp_override(half):
        expected = clip.encode_image(images)
    transformer.batch_first = False
    for block in clip.blocks:
        attention: Any = block.attn
        attention.batch_first = False
    clip.family.batch_first = False
    turned = clip.capture(images, embeddings=True)
    torch.testing.assert_close(turned.x, acts.x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned.y, acts.y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned.embeddings, acts.embeddings, rtol=1e-4, atol=1e-5)
    with clip.mlp_override(half):
        torch.testing.assert_close(clip.encode_image(images), expected, rtol=1e-4, atol=1e-5)


def test_a_capture_inside_a_captured_forward_does_not_mix_with_it(clip: FrozenCLIP, images: Tensor) -> None:
    plain, others = clip.capture(images), images[:2].flip(3)
    inner = []

    def look(layer: int, x: Tensor, compute_y: Compute) -> Tensor:
        if len(x) == 5:
            inner.append(clip.capture(others, layers=[0, 1]))
        return compute_y()

    with clip.mlp_override(look, [1]):
        outer = clip.capture(images)
    expected = clip.capture(others, layers=[0, 1])
    assert torch.equal(outer.x, plain.x)
    assert torch.equal(outer.y, plain.y)
    assert len(inner) == 1
    assert torch.equal(inner[0].x, expected.x)
    assert torch.equal(inner[0].y, expected.y)
    assert_untouched(clip)
