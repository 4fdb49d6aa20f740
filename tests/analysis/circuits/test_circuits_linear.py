"""The linear tower: the library's own forward, exact transposes, and rows that add up."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clt_lightning.analysis.circuits import sources as sources_module
from clt_lightning.analysis.circuits.attribution import attribute
from clt_lightning.analysis.circuits.forward import see
from clt_lightning.analysis.circuits.image_model import model_of_image
from clt_lightning.analysis.circuits.linear import LinearTower
from clt_lightning.analysis.circuits.open_clip_parts import parts_of
from clt_lightning.analysis.circuits.parts import BlockParts, MlpParts, ReadOutParts, TowerParts
from clt_lightning.analysis.circuits.rerun import live_attention, live_mlp
from clt_lightning.analysis.circuits.rows import Reads, feature_rows, target_rows
from clt_lightning.analysis.circuits.sources import written_groups
from clt_lightning.backbone.attention_parts import AttentionParts, Linear, Norm, cast
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.support import depth_support, prune_groups
from tests.analysis import world
from tests.analysis.circuits.circuit_world import (
    ACTIVATIONS,
    TOWERS,
    a_target,
    an_image,
    clip_of,
    clt_of,
    library_embedding,
)


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return clip_of("plain")


@pytest.mark.parametrize("tower", TOWERS)
def test_the_forward_is_the_librarys(tower: str) -> None:
    clip, image = clip_of(tower), an_image()
    parts = cast(parts_of(clip), torch.float64)
    seen = see(parts, parts.embed(image[None]))
    torch.testing.assert_close(seen.embedding[0], library_embedding(clip, image), rtol=0, atol=1e-12)
    acts = clip.capture(image.float())
    torch.testing.assert_close(torch.stack(seen.x)[:, 0].float(), acts.x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.stack(seen.y)[:, 0].float(), acts.y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tower", TOWERS)
def test_the_held_tower_is_the_forward_at_the_image(tower: str) -> None:
    parts = cast(parts_of(clip_of(tower)), torch.float64)
    images = torch.stack([an_image(i) for i in range(3)])
    seen = see(parts, parts.embed(images))
    held = LinearTower(parts, seen, "libragrad")
    final = held.forward(seen.streams[0], held.past_mlp)
    torch.testing.assert_close(final, seen.streams[-1], rtol=0, atol=1e-12)


def test_groups_that_are_zero_are_not_read(clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a transcoder that is cut to half of its groups: as many rows as there are, and the books still add up."""
    clt, image = copy.deepcopy(clt_of()), an_image()
    prune_groups(clt, keep=0.5)
    model = model_of_image(clip, clt, image, torch.float64)
    sources, L = model.sources, clt.n_layers
    support = depth_support(clt)
    written = [written_groups(clt, layer, part.features) for layer, part in enumerate(sources.active)]
    for layer, part in enumerate(sources.active):
        assert torch.equal(written[layer], support.written[layer][part.features])
    read: list[int] = []
    own = sources_module.decoder_rows

    def counted(clt: CrossLayerTranscoder, layer: int, features: Tensor, target: int, like: Tensor) -> Tensor:
        read.append(len(features))
        return own(clt, layer, features, target, like)

    monkeypatch.setattr(sources_module, "decoder_rows", counted)
    row = [model.row(a_target(), "frozen")]
    rows = target_rows(sources, row)
    assert 0 < sum(read) == sum(int(w.sum()) for w in written)
    monkeypatch.setattr(sources_module, "written_groups", lambda clt, layer, f: torch.ones(len(f), L - layer).bool())
    every = model_of_image(clip, clt, image, torch.float64)
    torch.testing.assert_close(rows, target_rows(every.sources, row), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tower", ["plain", "layer_scale", "norm_former"])
@pytest.mark.parametrize("rules", ["libragrad", "transcoder"])
def test_the_backward_is_the_transpose_of_the_forward(tower: str, rules: str) -> None:
    """<g, J v> = <J^T g, v> for a batch, an image a row, and for one image with many rows."""
    parts = cast(parts_of(clip_of(tower)), torch.float64)
    generator = torch.Generator().manual_seed(0)
    for images, rows in ((3, 3), (1, 5)):
        seen = see(parts, parts.embed(torch.stack([an_image(i) for i in range(images)])))
        skips = None
        if rules == "transcoder":
            skips = [0.1 * torch.randn(world.WIDTH, world.WIDTH, generator=generator).double() for _ in parts.blocks]
        held = LinearTower(parts, seen, rules, skips)  # type: ignore[arg-type]
        shape = (rows, *seen.streams[0].shape[1:])
        change = torch.randn(shape, generator=generator).double()
        gradient = torch.randn(shape, generator=generator).double()
        start = seen.streams[0].expand(shape)
        moved = held.forward(start + change, held.past_mlp) - held.forward(start, held.past_mlp)
        *_, last = held.pull(held.n_layers - 1, rows, final=gradient)
        assert last.place == "input"
        torch.testing.assert_close((last.gradient * change).sum((1, 2)), (gradient * moved).sum((1, 2)))


@pytest.mark.parametrize("skip", [None, "node", "through"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rows_sum_to_pre_activations_and_logits(clip: FrozenCLIP, activation: str, skip: str | None) -> None:
    clt = clt_of(activation, skip=skip is not None)
    check_rows(clip, clt, skip or "node")


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("topology", ["cross_layer", "per_layer", "sae"])
def test_rows_sum_on_every_tower(tower: str, topology: str) -> None:
    check_rows(clip_of(tower), clt_of(topology=topology), "node")


def test_rows_sum_with_blocks_of_the_other_layout() -> None:
    image = an_image()
    one, other = clip_of("plain"), clip_of("plain", batch_first=False)
    torch.testing.assert_close(one.encode_image(image.float()), other.encode_image(image.float()))
    check_rows(other, clt_of(), "node")


def check_rows(clip: FrozenCLIP, clt: torch.nn.Module, skip: str) -> None:
    model = model_of_image(clip, clt, an_image(), torch.float64, skip)  # type: ignore[arg-type]
    sources = model.sources
    layer, position, feature, codes = sources.feature_table()
    n = len(codes)
    assert n > 40
    rows = feature_rows(sources, Reads(torch.arange(n), layer, position, feature, n))
    torch.testing.assert_close(rows.sum(1), codes, rtol=0, atol=1e-10)
    # nothing comes from the same layer or a later one
    by_feature = rows[:, : sources.n_features]
    for reader in range(world.LAYERS):
        assert not bool(by_feature[layer == reader][:, layer >= reader].any())
    for kind in ("frozen", "tangent"):
        read_out = model.row(a_target(), kind)
        found = target_rows(sources, [read_out])
        assert float(found.sum()) == pytest.approx(read_out.value, abs=1e-10)
        embedding = library_embedding(clip, an_image())
        expected = 3.0 * float(embedding / embedding.norm() @ a_target().direction.double())
        assert read_out.value == pytest.approx(expected, abs=1e-10)


def test_codes_are_the_transcoders(clip: FrozenCLIP) -> None:
    for activation in ACTIVATIONS:
        clt = clt_of(activation)
        model = model_of_image(clip, clt, an_image())
        dense = clt.encode(torch.stack(model.seen.x)[:, 0]).dense()
        for layer, active in enumerate(model.sources.all_active):
            found = torch.zeros_like(dense[layer])
            found[active.positions, active.features] = active.values
            torch.testing.assert_close(found, dense[layer].detach(), rtol=1e-4, atol=1e-5)
        y = clt.decode(dense, torch.stack(model.seen.x)[:, 0])
        torch.testing.assert_close(model.sources.written, y.detach(), rtol=1e-4, atol=1e-4)


def test_single_precision_adds_up_as_well(clip: FrozenCLIP) -> None:
    model = model_of_image(clip, clt_of(skip=True), an_image().float())
    layer, position, feature, codes = model.sources.feature_table()
    rows = feature_rows(model.sources, Reads(torch.arange(len(codes)), layer, position, feature, len(codes)))
    torch.testing.assert_close(rows.sum(1), codes, rtol=1e-4, atol=1e-4)


def test_training_mode_of_the_transcoder_does_not_matter(clip: FrozenCLIP) -> None:
    clt = clt_of("BatchTopK")
    before = clt.activation.threshold.clone()  # type: ignore[operator]
    wanted = model_of_image(clip, clt, an_image()).sources.n_features
    clt.train()
    assert model_of_image(clip, clt, an_image()).sources.n_features == wanted
    assert clt.activation.training
    assert torch.equal(clt.activation.threshold, before)  # type: ignore[arg-type]


def test_attention_pooling_has_tangent_rows_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    vision = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4}
    world.register(tmp_path_factory.mktemp("pool"), "tiny-circuits-pool", **vision)
    clip = world.make_clip("tiny-circuits-pool")
    model = model_of_image(clip, clt_of(), an_image(), torch.float64)
    with pytest.raises(UserError, match=r"attention pooling.*tangent"):
        model.row(a_target(), "frozen")
    row = model.row(a_target(), "tangent")
    assert float(target_rows(model.sources, [row]).sum()) == pytest.approx(row.value, abs=1e-10)
    expected = library_embedding(clip, an_image())
    torch.testing.assert_close(model.seen.embedding[0], expected, rtol=0, atol=1e-12)


def test_mistakes_are_told(clip: FrozenCLIP) -> None:
    clt = clt_of()
    with pytest.raises(UserError, match=r"one image \(3, 24, 24\)"):
        model_of_image(clip, clt, torch.zeros(2, 3, 24, 24))
    with pytest.raises(UserError, match="NaN"):
        model_of_image(clip, clt, torch.full((3, 24, 24), float("nan")))
    with pytest.raises(UserError, match="float32 or float64"):
        model_of_image(clip, clt, an_image(), torch.bfloat16)
    with pytest.raises(UserError, match="node or through"):
        model_of_image(clip, clt, an_image(), skip="no")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="of 3 numbers"):
        model_of_image(clip, clt, an_image()).row(a_target().__class__("t", torch.ones(3)), "frozen")


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("rope", [False, True])
def test_the_tangent_tower_is_the_derivative_of_the_live_one(tower: str, rope: bool) -> None:
    """Against finite differences of a forward in which everything moves and MLPs add what they added."""
    parts = cast(parts_of(clip_of(tower)), torch.float64)
    if rope:
        turns = torch.arange(world.POSITIONS).double()[:, None] * torch.linspace(0.1, 1.0, 8).double()

        def turn(x: Tensor) -> Tensor:
            a, b = x[..., :8], x[..., 8:]
            return torch.cat([a * turns.cos() - b * turns.sin(), a * turns.sin() + b * turns.cos()], -1)

        blocks = [replace(b, attention=replace(b.attention, rope=turn)) for b in parts.blocks]
        parts = replace(parts, blocks=blocks)
    seen = see(parts, parts.embed(an_image()[None]))
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(seen.streams[0].shape, generator=generator).double()
    gradient = torch.randn(seen.streams[0].shape, generator=generator).double()

    def live(stream: Tensor, own_mlps: bool) -> Tensor:
        for layer, block in enumerate(parts.blocks):
            stream = stream + live_attention(block, stream)
            stream = stream + (live_mlp(block, block.norm_2(stream)) if own_mlps else seen.y[layer])
        return stream

    for rules in ("transcoder", "libragrad"):
        held = LinearTower(parts, seen, rules, tangent=True)
        *_, last = held.pull(held.n_layers - 1, 1, final=gradient)
        ends = [live(seen.streams[0] + step * change, rules == "libragrad") for step in (1e-6, -1e-6)]
        slope = (ends[0] - ends[1]) / 2e-6
        assert float((last.gradient * change).sum()) == pytest.approx(float((gradient * slope).sum()), rel=1e-6)
        # and not that of the held one
        *_, other = LinearTower(parts, seen, rules).pull(held.n_layers - 1, 1, final=gradient)
        assert not torch.allclose(other.gradient, last.gradient, rtol=1e-2)


def random_parts(prefix: int, norm: str, seed: int = 0) -> TowerParts:
    """A tower of no library: registers or none, RMS norms or LayerNorms, with and without biases."""
    generator = torch.Generator().manual_seed(seed)
    d, heads, grid = world.WIDTH, 4, (3, 2)

    def random(*shape: int, size: float = 0.25) -> Tensor:
        return size * torch.randn(shape, generator=generator).double()

    def made_norm(width: int) -> Norm:
        bias = random(width) if norm == "layer" else None
        return Norm(1 + random(width), bias, 1e-6, centred=norm == "layer")

    def linear(out: int, size: int) -> Linear:
        return Linear(random(out, size), random(out) if norm == "layer" else None)

    blocks = [
        BlockParts(
            norm_1=made_norm(d),
            attention=AttentionParts(
                linear(3 * d, d), linear(d, d), heads, q_norm=made_norm(d // heads), k_norm=made_norm(d // heads)
            ),
            norm_2=made_norm(d),
            mlp=MlpParts(linear(2 * d, d), linear(d, 2 * d), torch.nn.functional.silu),
            scale_1=1 + random(d),
            scale_2=1 + random(d),
        )
        for _ in range(world.LAYERS)
    ]
    positions = prefix + grid[0] * grid[1]
    mix = random(positions, 3 * world.SIZE**2, size=0.05)
    spread = random(3 * world.SIZE**2, d, size=0.1)
    pool = torch.zeros(positions).double()
    if prefix:
        pool[0] = 1.0
    else:
        pool[:] = 1.0 / positions

    def embed(images: Tensor) -> Tensor:
        return (images.flatten(1)[:, None].to(mix) * mix) @ spread

    read_out = ReadOutParts(pool, made_norm(d), prefix == 0, linear(16, d))
    return TowerParts("made", embed, blocks, read_out, prefix, grid)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_rows_sum_on_towers_of_other_families(prefix: int, norm: str) -> None:
    """Registers as DINOv2 has them, no prefix as SigLIP; features, errors, inputs and biases add up all the same."""
    parts = random_parts(prefix, norm)

    class Backbone:
        image_size, n_layers, d_model, name = world.SIZE, world.LAYERS, world.WIDTH, "made"
        device = torch.device("cpu")

        def circuit_parts(self) -> TowerParts:
            return parts

    for topology in ("cross_layer", "sae"):
        clt = clt_of("JumpReLU", topology)
        for options in ({}, {"positions": "summed"}, {"tower": "tangent"}, {"max_nodes": 20}):
            graph = attribute(Backbone(), clt, an_image(), a_target(), dtype=torch.float64, **options)
            explained = graph.nodes.of("feature", "target")
            assert float((graph.edges.inputs() - graph.nodes.activation)[explained].abs().max()) < 1e-10
            assert int(explained.sum()) > 20
    names = parts.position_names()
    assert len(names) == prefix + 6
    assert names[:prefix] == ["CLS", "reg0", "reg1", "reg2", "reg3"][:prefix]
    last = graph.nodes.of("feature") & (graph.nodes.layer == world.LAYERS - 1)
    assert (set(graph.nodes.position[last].tolist()) <= {0}) == (prefix > 0)
