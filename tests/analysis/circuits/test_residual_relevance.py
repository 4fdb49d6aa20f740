"""Nodes and edges of the residual replacement model, against autograd through open_clip's own modules."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.analysis.circuits import residual_model as made_model
from clt_lightning.analysis.circuits.faithful import Baseline, Features
from clt_lightning.analysis.circuits.residual import relevance
from clt_lightning.analysis.circuits.residual.relevance import ResidualModel
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.transcoder import CrossLayerTranscoder
from tests.analysis import world
from tests.analysis.circuits.circuit_world import a_target, an_image, clip_of, clt_of
from tests.analysis.circuits.residual_world import HeldStream, made_baseline, sae_of


def rebuilt(sae: CrossLayerTranscoder, layer: int, codes: Tensor, stream: Tensor) -> Tensor:
    """What codes rebuild at the size and mean of the image's own tokens."""
    decoded: Tensor = (codes @ sae.W_dec[layer][:, 0].double() + sae.b_dec[layer].double()) * sae.y_scale[
        layer
    ].double()
    if sae.normalization == "layer":
        return decoded
    return decoded * (stream.std(-1, correction=0, keepdim=True) + 1e-5) + stream.mean(-1, keepdim=True)


def pre_activations(sae: CrossLayerTranscoder, layer: int, stream: Tensor, clean: Tensor) -> Tensor:
    """What an encoder reads of a stream, the size of the image's own tokens held."""
    if sae.normalization == "token":
        stream = (stream - stream.mean(-1, keepdim=True)) / (clean.std(-1, correction=0, keepdim=True) + 1e-5)
    pre: Tensor = (stream * sae.x_scale[layer]) @ sae.W_enc[layer].double().T + sae.b_enc[layer].double()
    return pre


def a_model(
    activation: str = "TopK", normalize: str = "token", layers: list[int] | None = None, seed: int = 0
) -> tuple[FrozenCLIP, CrossLayerTranscoder, ResidualModel, HeldStream]:
    clip, sae = clip_of("plain"), sae_of(activation, normalize, layers)
    image = an_image(seed)
    return clip, sae, made_model(clip, sae, image, torch.float64), HeldStream(clip, image)


@pytest.mark.parametrize("normalize", ["token", "layer"])
@pytest.mark.parametrize("activation", ["ReLU", "TopK", "AbsTopK", "BatchTopK", "JumpReLU"])
def test_codes_and_errors_are_the_library_s(activation: str, normalize: str) -> None:
    _, sae, model, held = a_model(activation, normalize)
    for layer in range(world.LAYERS):
        stream = held.streams[layer + 1]
        torch.testing.assert_close(model.streams[layer], stream, atol=1e-11, rtol=0)
        codes = sae.double().encode_layer(stream, layer).dense_layer(0)
        torch.testing.assert_close(model.codes[layer], codes, atol=1e-10, rtol=0)
        error = stream - rebuilt(sae, layer, codes, stream)
        torch.testing.assert_close(model.errors[layer], error, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("normalize", "layers"), [("token", None), ("layer", None), ("token", [0, 2]), ("token", [1])])
def test_nodes_and_errors_are_what_the_baseline_takes_away(normalize: str, layers: list[int] | None) -> None:
    # within the linear model: m - m(codes and error of a layer at the baseline)
    clip, sae, model, held = a_model(normalize=normalize, layers=layers)
    baseline, target = made_baseline(clip, sae), a_target()
    direction = target.direction.double() * target.scale
    blocks = layers or list(range(world.LAYERS))
    with torch.no_grad():
        whole = held.read(held.streams[-1]) @ direction
        through = relevance(model, target, baseline, errors="through", edges=False)
        leaf = relevance(model, target, baseline)
        assert through.value == pytest.approx(float(whole), abs=1e-10)
        for layer, block in enumerate(blocks):
            stream = held.streams[block + 1]
            usual = rebuilt(sae, layer, baseline.codes[layer].double(), stream) + baseline.errors[layer].double()
            taken = whole - held.run(block + 1, usual) @ direction
            assert float(through.places[layer].sum()) == pytest.approx(float(taken), abs=1e-9)
            # leaf: from here on what is written goes through the features that fire, errors held
            running = usual
            for later in range(layer, len(blocks)):
                if later > layer:
                    clean = held.streams[blocks[later] + 1]
                    fires = model.codes[later] != 0
                    codes = torch.where(fires, pre_activations(sae, later, running, clean), 0.0)
                    running = rebuilt(sae, later, codes, clean) + model.errors[later]
                end = blocks[later + 1] if later + 1 < len(blocks) else world.LAYERS - 1
                for index in range(blocks[later] + 1, end + 1):
                    running = held.block(index, running)
            taken = whole - held.read(running) @ direction
            assert float(leaf.places[layer].sum()) == pytest.approx(float(taken), abs=1e-9)
    assert len(leaf.edges) == len(blocks) - 1
    for layer, edges in enumerate(leaf.edges):  # edges out of a node sum to the node
        torch.testing.assert_close(edges.weight.sum(0), leaf.nodes[layer].cpu(), atol=1e-9, rtol=0)
    torch.testing.assert_close(leaf.nodes[-1], through.nodes[-1])


def test_an_edge_is_what_a_source_adds_through_its_reader() -> None:
    clip, sae, model, held = a_model()
    baseline, target = made_baseline(clip, sae), a_target()
    found = relevance(model, target, baseline)
    layer = 1
    above = model.streams[layer + 1].clone().requires_grad_()
    gradient = torch.autograd.grad(held.read(above) @ (target.direction.double() * target.scale), above)[0]
    size = model.sizes[layer + 1]
    by_code = (gradient @ model.decoders(layer + 1).T) * size
    edges = found.edges[layer]
    active = (model.codes[layer + 1] != 0).any(0).nonzero().flatten()
    # a reader that is on where nothing of the target comes from has no edges
    assert set(edges.readers.tolist()) <= set(active.tolist())
    reader = int(edges.readers[edges.weight.abs().sum(1).argmax()])
    row = edges.weight[edges.readers.tolist().index(reader)]
    fires = model.codes[layer + 1][:, reader] != 0
    weights = torch.where(fires, by_code[:, reader], 0.0)

    def reads(codes: Tensor, error: Tensor) -> Tensor:
        stream = rebuilt(sae, layer, codes, held.streams[layer + 1]) + error
        pre = pre_activations(sae, layer + 1, held.block(layer + 1, stream), held.streams[layer + 2])
        return (pre[:, reader] * weights).sum()

    by_code, weights = by_code.detach(), weights.detach()
    clean = reads(model.codes[layer], model.errors[layer]).detach()
    for source in row[:-1].abs().topk(3).indices.tolist():
        codes = model.codes[layer].clone()
        codes[:, source] = baseline.codes[layer][:, source].double()
        assert float(clean - reads(codes, model.errors[layer]).detach()) == pytest.approx(float(row[source]), abs=1e-9)
    taken = clean - reads(model.codes[layer], baseline.errors[layer].double())
    assert float(taken.detach()) == pytest.approx(float(row[-1]), abs=1e-9)


def test_plain_gradients_are_the_live_model_s() -> None:
    _, _, model, held = a_model(seed=3)
    target = a_target(2)
    found = model.gradients(target, "gradient")
    visual = held.visual
    for layer in range(world.LAYERS):
        stream = held.streams[layer + 1].clone().requires_grad_()
        running = stream[None]
        for block in visual.transformer.resblocks[layer + 1 :]:
            running = block(running)
        embedding = visual.ln_post(running)[0, 0] @ visual.proj
        value = target.scale * (embedding / embedding.norm()) @ target.direction.double()
        (gradient,) = torch.autograd.grad(value, stream)
        torch.testing.assert_close(found[layer], gradient, atol=1e-10, rtol=0)


def test_what_cannot_be() -> None:
    clip, sae = clip_of("plain"), sae_of()
    with pytest.raises(cl.UserError, match=r"resid_post.*cross_layer.*residual\.yaml"):
        made_model(clip, clt_of(), an_image())
    with pytest.raises(cl.UserError, match="attn_out"):
        made_model(clip, sae_of(site="attn_out"), an_image())
    model = made_model(clip, sae, an_image())
    with pytest.raises(cl.UserError, match=re.escape("(1, 10, 40)")):
        relevance(model, a_target(), Baseline.zeros(clip, Features(clip, sae_of(layers=[1]))))
    baseline = made_baseline(clip, sae)
    with pytest.raises(cl.UserError, match="edges are of errors='leaf'"):
        relevance(model, a_target(), baseline, errors="through")
