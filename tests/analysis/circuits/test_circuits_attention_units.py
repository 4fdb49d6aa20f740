"""Units of sparse attention as nodes: books that add up, codes that are the units' own, keys that sum to them."""

from __future__ import annotations

import pytest
import torch

import clt_lightning as cl
from clt_lightning.analysis.circuits import attribute, attribute_with_attention, model_of_image
from clt_lightning.analysis.circuits.parts import TowerParts
from clt_lightning.analysis.target import Target
from clt_lightning.backbone.vit import FrozenViT
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.attention import patterns_at, read_attention
from clt_lightning.transcoder.attention import SparseAttention
from tests.analysis import world
from tests.analysis.circuits.circuit_world import a_target, an_image, clip_of, clt_of
from tests.backbone.models import ROWS, make

F64 = torch.float64


def units(parts: TowerParts, activation: cl.TopK | cl.JumpReLU | None = None, seed: int = 0) -> SparseAttention:
    heads = parts.blocks[0].attention.n_heads
    made = SparseAttention(world.LAYERS, world.WIDTH, 16 * heads, heads, activation or cl.TopK(4), seed=seed)
    made.b_enc.data += 0.05
    made.b_dec.data += 0.1
    made.y_scale.fill_(0.5)
    return made


@pytest.mark.parametrize(
    ("tower", "activation", "batch_first"),
    [
        ("plain", cl.TopK(4), False),
        ("layer_scale", cl.JumpReLU(0.2), True),
        ("norm_former", cl.TopK(3), True),
        ("qk_norm", cl.TopK(4), True),
    ],
    ids=str,
)
def test_books_add_up(tower: str, activation: cl.TopK | cl.JumpReLU, batch_first: bool) -> None:
    clip, clt = clip_of(tower, batch_first), clt_of("TopK", "cross_layer", True)
    model = model_of_image(clip, clt, an_image(), F64)
    sparse = units(model.parts, activation)
    targets = [a_target(0, "one"), a_target(1, "two")]
    graph = attribute_with_attention(clip, clt, sparse, an_image(), targets, dtype=F64)
    without = attribute(clip, clt, an_image(), targets, dtype=F64)
    nodes = graph.nodes
    explained = nodes.of("feature", "attention", "target")
    torch.testing.assert_close(graph.edges.inputs()[explained], nodes.activation[explained], atol=1e-10, rtol=0)
    assert int(nodes.of("attention").sum()) > 20
    for kind in ("feature", "target"):
        mine, theirs = nodes.of(kind), without.nodes.of(kind)
        torch.testing.assert_close(nodes.activation[mine], without.nodes.activation[theirs], atol=1e-12, rtol=0)
    # codes are those of the units on the backbone's own sites, in its precision
    read = clip.read(an_image().float()[None], "attn_in")["attn_in"]
    for layer in range(world.LAYERS - 1):
        pattern = model.seen.held[layer].pattern.float()
        codes = sparse.encode(layer, read[layer][None], pattern).dense()[0].detach()
        own = torch.zeros_like(codes)
        for node in (n for n in nodes if n.kind == "attention" and n.layer == layer):
            own[node.position, node.feature] = node.activation
        torch.testing.assert_close(own, codes, atol=1e-4, rtol=1e-3)


def test_inputs_of_a_unit_are_the_stream_at_its_keys() -> None:
    """A first layer's unit reads what enters block 0 alone, split over keys as `key_terms` has it."""
    clip, clt = clip_of("plain"), clt_of()
    model = model_of_image(clip, clt, an_image(), F64)
    sparse = units(model.parts)
    graph = attribute_with_attention(clip, clt, sparse, an_image(), a_target(0, "one"), dtype=F64)
    dense, nodes = graph.edges.dense(), graph.nodes
    wide = SparseAttention(**{**sparse.config(), "activation": cl.TopK(4)}).double()
    wide.load_state_dict(sparse.double().state_dict())
    part, held = model.parts.blocks[0], model.seen.held[0]
    normed = part.norm_1(model.seen.streams[0], held.norm_1)
    inputs = nodes.of("input")
    some = [node for node in nodes if node.kind == "attention" and node.layer == 0][:40]
    for node in some:
        image, query, unit = (torch.tensor([value]) for value in (0, node.position, node.feature))
        terms = wide.key_terms(0, normed, image, query, unit, held.pattern)[0].detach()
        bias = part.norm_1.bias
        assert bias is not None
        constant = held.pattern[0, node.feature // 16, node.position] * (wide.readers(0, unit)[0] @ bias).detach()
        torch.testing.assert_close(dense[node.index][inputs], terms - constant, atol=1e-10, rtol=0)
        others = dense[node.index][nodes.of("feature", "error", "attention", "attention_error", "skip")]
        assert float(others.abs().sum()) == 0


def test_own_patterns_and_other_backbones_are_refused() -> None:
    clip, clt = clip_of("plain"), clt_of()
    heads = clip.attention_parts(0).n_heads
    own = SparseAttention(world.LAYERS, world.WIDTH, 4 * heads, heads, d_qk=2)
    with pytest.raises(UserError, match="patterns of their own"):
        attribute_with_attention(clip, clt, own, an_image(), a_target(0, "one"))
    with pytest.raises(UserError, match="layers of width"):
        attribute_with_attention(clip, clt, SparseAttention(1, 8, 4, 2), an_image(), a_target(0, "one"))


@pytest.mark.parametrize(
    "name", ["SigLIP's tower", "DINOv2 with registers", "DINOv3", "registers, no [CLS], RMSNorm", "ViT"]
)
def test_books_add_up_on_other_families(name: str) -> None:
    """Without [CLS], with registers, rotary positions, RMSNorm: inputs sum to codes, keys to pre-activations."""
    vit = FrozenViT.from_model(make(next(row for row in ROWS if row.what == name)).double())
    clt = cl.CrossLayerTranscoder(3, vit.d_model, 40, cl.TopK(5), seed=0).double()
    image = torch.randn(3, 32, 32, dtype=F64, generator=torch.Generator().manual_seed(0))
    heads = vit.attention_parts(0).n_heads
    sparse = SparseAttention(3, vit.d_model, 16 * heads, heads, cl.TopK(4), seed=0).double()
    sparse.b_enc.data += 0.05
    target = Target("a direction", torch.randn(vit.embed_dim, generator=torch.Generator().manual_seed(1)))
    if name == "SigLIP's tower":  # its pooling is no sum of terms, whatever the nodes are
        with pytest.raises(UserError, match="attention pooling"):
            attribute_with_attention(vit, clt, sparse, image, target, dtype=F64)
    else:
        graph = attribute_with_attention(vit, clt, sparse, image, target, dtype=F64)
        nodes = graph.nodes
        explained = nodes.of("feature", "attention", "target")
        assert int(nodes.of("attention").sum()) > 20
        torch.testing.assert_close(graph.edges.inputs()[explained], nodes.activation[explained], atol=1e-10, rtol=0)
    sites = read_attention(vit, image[None])
    patterns = patterns_at(vit, sparse, sites.x)
    assert patterns is not None
    n, units_of = vit.n_positions, torch.arange(sparse.n_features)
    for layer, pattern in enumerate(patterns):
        pre = sparse.pre_activations(layer, sites.x[layer], pattern).detach()
        queries = torch.arange(n).repeat_interleave(sparse.n_features)
        terms = sparse.key_terms(layer, sites.x[layer], queries * 0, queries, units_of.repeat(n), pattern).detach()
        whole = terms.sum(1).view(n, -1) + sparse.b_enc[layer].detach()
        torch.testing.assert_close(whole, pre, atol=1e-10, rtol=0)
