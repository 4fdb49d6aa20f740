"""The frozen backbone: open_clip's own numbers, and out of everybody's way."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from clt_lightning.backbone.clip import FrozenCLIP, random_positions
from clt_lightning.core.errors import UserError

from .tiny import Maker, tiny_config, write_tiny

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer_scale": {"ls_init_value": 0.5},
    "custom_blocks": {"qk_norm": True, "scale_fc": True},
    "average_pool": {"pool_type": "avg", "final_ln_after_pool": True},
    "attentional_pool": {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4},  # as CoCa has
}


def by_hand(model: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and unit embeddings through the block's own arithmetic, without a hook of ours."""
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    handles = []
    for block in model.visual.transformer.resblocks:
        handles.append(block.ln_2.register_forward_hook(lambda m, a, out: xs.append(out.clone())))
        handles.append(block.ls_2.register_forward_hook(lambda m, a, out: ys.append(out.clone())))
    with torch.no_grad():
        embeddings = model.encode_image(images, normalize=True)
    for handle in handles:
        handle.remove()
    return torch.stack(xs).flatten(1, 2), torch.stack(ys).flatten(1, 2), embeddings


def count_hooks(clip: FrozenCLIP) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in clip.model.modules())


@pytest.mark.parametrize("variant", VARIANTS)
def test_capture_and_embeddings_are_open_clips_own(make_clip: Maker, images: Tensor, variant: str) -> None:
    clip = make_clip(**VARIANTS[variant])
    x, y, embeddings = by_hand(clip.model, images)
    acts = clip.capture(images, embeddings=True)
    assert torch.equal(acts.x, x)
    assert torch.equal(acts.y, y)
    assert acts.embeddings is not None
    assert torch.equal(acts.embeddings, embeddings)
    assert torch.equal(clip.encode_image(images), embeddings)
    assert (acts.n_images, acts.n_positions, acts.layers, acts.token_set) == (5, 17, (0, 1, 2), "all")
    block: Any = clip.blocks[1]
    # the pair belongs together: y is what the branch makes of x
    torch.testing.assert_close(acts.y[1], block.ls_2(block.mlp(acts.x[1])))


def test_layers_come_in_the_order_asked_for_and_the_forward_stops(clip: FrozenCLIP, images: Tensor) -> None:
    whole = clip.capture(images)
    calls: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda m, a, i=i: calls.append(i)) for i, block in enumerate(clip.blocks)
    ]
    some = clip.capture(images, layers=[1, 0])
    assert calls == [0, 1]
    assert torch.equal(some.x, whole.x[[1, 0]])
    assert torch.equal(some.y, whole.y[[1, 0]])
    clip.capture(images, layers=[0], stop=False)
    assert calls == [0, 1, 0, 1, 2]
    for handle in handles:
        handle.remove()


def test_positions_are_captured_alone(clip: FrozenCLIP, images: Tensor) -> None:
    positions = random_positions(5, 17, 4, torch.Generator().manual_seed(3))
    whole, some = clip.capture(images), clip.capture(images, positions=positions)
    index = positions.view(1, 5, 4, 1).expand(3, -1, -1, 32)
    assert torch.equal(some.x, whole.x.view(3, 5, 17, 32).gather(2, index).flatten(1, 2))
    assert torch.equal(some.y, whole.y.view(3, 5, 17, 32).gather(2, index).flatten(1, 2))
    with pytest.raises(UserError, match=r"0\.\.16"):
        clip.capture(images, positions=positions + 14)
    with pytest.raises(UserError, match=r"\(5, n\)"):
        clip.capture(images, positions=positions[:2])


def test_capture_leaves_no_hook_even_when_it_fails(clip: FrozenCLIP, images: Tensor) -> None:
    before = count_hooks(clip)
    clip.capture(images)
    clip.capture(images, layers=[0])

    def broken(layer: int, x: Tensor, compute_y: object) -> Tensor:
        raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), clip.mlp_override(broken, [2]):
        clip.capture(images)
    assert count_hooks(clip) == before


@pytest.mark.parametrize(
    ("layers", "words"), [([], "empty"), ([0, 0], "twice"), ([3], r"\[3\].*0 to 2"), ([-1], r"\[-1\]")]
)
def test_wrong_layers(clip: FrozenCLIP, images: Tensor, layers: list[int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        clip.capture(images, layers=layers)


def test_wrong_image_size_says_expected_and_got(clip: FrozenCLIP) -> None:
    with pytest.raises(UserError, match=r"32, 32\), got \(2, 3, 48, 48\)"):
        clip.encode_image(torch.zeros(2, 3, 48, 48))


class Parent(nn.Module):
    def __init__(self, clip: FrozenCLIP) -> None:
        super().__init__()
        self.clip = clip
        self.head = nn.Linear(4, 2)


def test_a_parent_sees_no_weight_of_it(clip: FrozenCLIP, images: Tensor) -> None:
    parent = Parent(clip)
    assert {name for name, _ in parent.named_parameters()} == {"head.weight", "head.bias"}
    assert set(parent.state_dict()) == {"head.weight", "head.bias"}
    assert not list(clip.buffers())
    parent.load_state_dict(parent.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match="Unexpected"):
        parent.load_state_dict({**parent.state_dict(), "clip.x": torch.zeros(1)}, strict=True)
    assert not any(p.requires_grad for p in clip.model.parameters())


def test_eval_and_frozen_for_ever(clip: FrozenCLIP, images: Tensor) -> None:
    parent = Parent(clip).train()
    assert parent.head.training
    assert not clip.training
    assert not any(m.training for m in clip.model.modules())
    parent.requires_grad_(True)
    assert not any(p.requires_grad for p in clip.model.parameters())
    assert not clip.capture(images).y.requires_grad


@pytest.mark.parametrize("change", ["half", "bfloat16", "double"])
def test_a_parents_precision_does_not_change_it(clip: FrozenCLIP, images: Tensor, change: str) -> None:
    parent, before = Parent(clip), clip.encode_image(images)
    getattr(parent, change)()
    assert parent.head.weight.dtype != torch.float32
    assert torch.equal(clip.encode_image(images), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(clip.encode_image(images), before)
        assert clip.capture(images).x.dtype == torch.float32


def test_a_parents_device_moves_it(clip: FrozenCLIP) -> None:
    parent = Parent(clip).to("meta")
    assert clip.device == torch.device("meta")
    assert parent.head.weight.is_meta
    assert all(p.is_meta and p.dtype == torch.float32 for p in clip.model.parameters())


def test_copies_and_pickles_give_the_same_numbers(clip: FrozenCLIP, images: Tensor) -> None:
    for twin in (copy.deepcopy(clip), pickle.loads(pickle.dumps(clip))):
        assert torch.equal(twin.encode_image(images), clip.encode_image(images))
        assert twin.blocks[0] is twin.model.visual.transformer.resblocks[0]
        with twin.mlp_override(lambda layer, x, compute_y: torch.zeros_like(x)):
            assert not torch.equal(twin.encode_image(images), clip.encode_image(images))


@pytest.mark.parametrize("variant", ["plain", "layer_scale"])
def test_bf16_is_close_and_returns_fp32(make_clip: Maker, images: Tensor, variant: str) -> None:
    exact, rough = make_clip(**VARIANTS[variant]), make_clip("bf16", **VARIANTS[variant])
    acts = rough.capture(images, embeddings=True)
    assert acts.x.dtype == acts.y.dtype == torch.bfloat16
    assert acts.embeddings is not None
    assert acts.embeddings.dtype == torch.float32
    torch.testing.assert_close(acts.embeddings.norm(dim=1), torch.ones(5))
    assert (acts.embeddings * exact.encode_image(images)).sum(1).min() > 0.995
    block: Any = rough.blocks[0]
    assert block.ln_2.weight.dtype == torch.float32
    assert block.mlp.c_fc.weight.dtype == torch.bfloat16


def test_unknown_precision() -> None:
    with pytest.raises(UserError, match=r"'fp8'.*fp32, bf16"):
        FrozenCLIP(pretrained=None, precision="fp8")  # type: ignore[arg-type]


def test_random_weights_of_a_real_architecture_come_from_the_seed() -> None:
    state = torch.random.get_rng_state()
    first = FrozenCLIP("ViT-S-32-alt", pretrained=None, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    again, other = (FrozenCLIP("ViT-S-32-alt", pretrained=None, seed=seed) for seed in (1, 2))
    weights = [clip.describe()["weights_sha256"] for clip in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]
    assert (first.n_layers, first.d_model, first.grid, first.n_positions) == (12, 384, (7, 7), 50)
    tokens = first.tokenizer(["a photo of a cat"])
    assert tuple(tokens.shape) == (1, 77)
    with torch.no_grad():
        own = first.model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(first.encode_text(["a photo of a cat"]), own, rtol=1e-5, atol=1e-6)  # fewer positions


def test_description_is_plain_and_tells_models_apart(make_clip: Maker) -> None:
    one, two, quick = make_clip(), make_clip(seed=1), make_clip(quick_gelu=True)
    for clip in (one, two, quick):
        json.dumps(clip.describe())
    assert one.describe()["weights_sha256"] == make_clip().describe()["weights_sha256"]
    assert one.describe()["weights_sha256"] != two.describe()["weights_sha256"]
    assert (one.describe()["gelu"], quick.describe()["gelu"]) == ("gelu", "quick_gelu")
    assert (one.quick_gelu, quick.quick_gelu) == (False, True)
    assert (one.describe()["image_size"], one.describe()["embed_dim"]) == (32, 24)


def test_preprocess_is_open_clips_and_survives_a_pickle(clip: FrozenCLIP) -> None:
    picture = Image.effect_noise((50, 40), 80).convert("RGB")
    pixels = pickle.loads(pickle.dumps(clip.preprocess))(picture)
    assert tuple(pixels.shape) == (3, 32, 32)
    raw = pixels * torch.tensor(clip.std).view(3, 1, 1) + torch.tensor(clip.mean).view(3, 1, 1)
    assert raw.min() > -1e-5
    assert raw.max() < 1 + 1e-5


def test_a_plain_checkpoint_beside_no_config(tmp_path: Path) -> None:
    first = FrozenCLIP("ViT-S-32-alt", pretrained=None, seed=3)
    path = tmp_path / "weights.safetensors"
    save_file(first.model.state_dict(), path)
    second = FrozenCLIP("ViT-S-32-alt", pretrained=str(path))
    assert second.describe()["weights_sha256"] == first.describe()["weights_sha256"]
    with pytest.raises(UserError, match=r"weights\.safetensors.*do not fit.*ViT-M-32-alt"):
        FrozenCLIP("ViT-M-32-alt", pretrained=str(path))


def test_normalisation_can_be_left_out(clip: FrozenCLIP, images: Tensor) -> None:
    raw = clip.encode_image(images, normalize=False)
    assert (raw.norm(dim=1) - 1).abs().min() > 1e-3
    torch.testing.assert_close(F.normalize(raw, dim=1), clip(images))


def test_torch_format_is_read_too(tmp_path: Path, images: Tensor) -> None:
    path = write_tiny(tmp_path, tiny_config())
    state = FrozenCLIP("tiny", str(path)).model.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "epoch_1.pt")
    first, second = (FrozenCLIP("tiny", str(p)) for p in (path, tmp_path / "epoch_1.pt"))
    assert torch.equal(first.encode_image(images), second.encode_image(images))
