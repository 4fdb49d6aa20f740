"""The residual model's graph of one image, and features over the layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.analysis.circuits import residual_model as made_model
from clt_lightning.analysis.circuits.faithful import Features, observe_units
from clt_lightning.analysis.circuits.graph import Graph
from clt_lightning.analysis.circuits.residual import evolution, relevance, residual_graph
from clt_lightning.analysis.circuits.residual.evolution import (
    Matches,
    edge_matches,
    nearest,
    summed_edges,
    weight_matches,
)
from clt_lightning.analysis.spatial import moran
from tests.analysis import world
from tests.analysis.circuits.circuit_world import a_target, an_image, clip_of, clt_of
from tests.analysis.circuits.residual_world import HeldStream, batches, made_baseline, sae_of


@pytest.mark.parametrize(("layers", "tower"), [(None, "plain"), ([0, 2], "plain"), (None, "average_pool")])
def test_the_graph_holds_nodes_and_edges(layers: list[int] | None, tower: str, tmp_path: Path) -> None:
    clip, sae = clip_of(tower), sae_of(layers=layers)
    target, baseline, image = a_target(), made_baseline(clip, sae), an_image(4)
    graph = residual_graph(clip, sae, image, target, baseline, dtype=torch.float64, about={"key": "a"})
    found = relevance(made_model(clip, sae, image, torch.float64), target, baseline)
    edges, nodes = graph.edges.dense(), graph.nodes
    number = {(int(n.layer), int(n.feature)): n.index for n in nodes if n.kind == "feature"}
    errors = {n.layer: n.index for n in nodes if n.kind == "error"}
    for layer, part in enumerate(found.edges):
        for reader, weights in zip(part.readers.tolist(), part.weight):
            row = edges[number[layer + 1, reader]]
            assert float(row[errors[layer]]) == pytest.approx(float(weights[-1]), abs=1e-12)
            some = weights[:-1].nonzero().flatten().tolist()
            at = [number[layer, feature] for feature in some]
            torch.testing.assert_close(row[at], weights[:-1][some], atol=1e-12, rtol=0)
    # what goes out of a feature is its node; what comes into the target is its value
    out = edges.sum(0)
    for (layer, feature), index in number.items():
        assert float(out[index]) == pytest.approx(float(found.nodes[layer, feature]), abs=1e-9)
    into = graph.edges.inputs()
    at_target = int(nodes.of("target").nonzero()[0])
    assert float(into[at_target]) == pytest.approx(found.value, abs=1e-9)
    # what comes into a reader of the first layer: the inputs, by autograd, and the rest to its bias
    held = HeldStream(clip, image) if tower == "plain" else None
    if held is not None and layers is None:
        first = found.edges[0]
        by_reader = first.weight.sum(1)
        assert by_reader.abs().max() > 1e-3
        inputs = edges[:, nodes.of("input")].sum(1)
        assert float(inputs.abs().max()) > 1e-3
        assert float((inputs[nodes.layer > 0]).abs().max()) == 0
    assert 0 < graph.scores.replacement < 1
    pruned = graph.prune(0.8, 0.98)
    path = pruned.to_json(tmp_path / "graph.json")
    again = Graph.from_json(path)
    assert len(again.nodes) == len(pruned.nodes)
    assert again.about["units"] == "target"
    assert again.about["key"] == "a"
    json.loads(path.read_text())


def test_inputs_are_what_the_first_layer_reads() -> None:
    clip, sae = clip_of("plain"), sae_of()
    target, baseline, image = a_target(), made_baseline(clip, sae), an_image(4)
    graph = residual_graph(clip, sae, image, target, baseline, dtype=torch.float64)
    model, held = made_model(clip, sae, image, torch.float64), HeldStream(clip, image)
    edges, nodes = graph.edges.dense(), graph.nodes
    # by autograd: the target through features alone, as a function of the stream at the entry
    root = held.streams[0].clone().requires_grad_()
    stream = root
    for layer in range(world.LAYERS):
        clean = held.streams[layer + 1]
        stream = held.block(layer, stream)
        size = model.sizes[layer]
        normal = (stream - stream.mean(-1, keepdim=True)) / size
        pre = (normal * sae.x_scale[layer]) @ sae.W_enc[layer].double().T + sae.b_enc[layer].double()
        codes = torch.where(model.codes[layer] != 0, pre, 0.0)
        torch.testing.assert_close(codes, model.codes[layer], atol=1e-9, rtol=0)
        decoded = codes @ model.decoders(layer) + sae.b_dec[layer].double()
        stream = decoded * size + clean.mean(-1, keepdim=True) + model.errors[layer]
    value = held.read(stream) @ (target.direction.double() * target.scale)
    (gradient,) = torch.autograd.grad(value, root)
    wanted = (gradient * held.streams[0]).sum(1)
    inputs = nodes.of("input").nonzero().flatten()
    assert [nodes[i].name for i in inputs.tolist()] == ["input @CLS", "input"]
    torch.testing.assert_close(edges[:, inputs[0]].sum(), wanted[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(edges[:, inputs[1]].sum(), wanted[1:].sum(), atol=1e-9, rtol=0)


def test_moran_of_known_maps() -> None:
    rows = columns = 6
    smooth = torch.arange(6.0).expand(6, 6)
    board = (torch.arange(6)[:, None] + torch.arange(6)) % 2 * 1.0
    noise = torch.rand(400, 6, 6, generator=torch.Generator().manual_seed(0))
    few = torch.zeros(6, 6)
    few[0, :4] = 1
    full = torch.ones(6, 6) + board
    maps = torch.stack([smooth, board, few, full], -1)[None]
    found = moran(maps)[0]

    def by_hand(values: Tensor) -> float:
        z = (values - values.mean()).numpy()
        above = pairs = 0.0
        for r in range(rows):
            for c in range(columns):
                for dr in (-1, 0, 1):
                    for dc in (-1, 0, 1):
                        if (dr or dc) and 0 <= r + dr < rows and 0 <= c + dc < columns:
                            above += z[r, c] * z[r + dr, c + dc]
                            pairs += 1
        return float(36 / pairs * above / (z**2).sum())

    assert float(found[0]) == pytest.approx(by_hand(smooth), abs=1e-6)
    assert float(found[1]) == pytest.approx(by_hand(board), abs=1e-6)
    assert found[0] > 0.5
    assert found[1] < 0
    assert found[2].isnan(), "four places fire: too few"
    assert found[3].isnan(), "all places fire"
    thin = torch.where(noise > 0.4, noise, 0.0)
    assert float(moran(thin[..., None]).nanmean()) == pytest.approx(-1 / 35, abs=0.01)


def test_matches() -> None:
    before = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 1], [0, 0], [-1, 0]]), dim=1)
    after = torch.tensor([[0.1, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    found = nearest(before, after, 2)
    assert found.feature.tolist() == [[1, 0], [3, 1], [-1, -1]]
    assert float(found.value[0, 0]) == pytest.approx(1.1 * 0.5**0.5)
    assert found.value[2].isnan().all()
    weights = torch.tensor([[0.0, 2.0, -1.0, 9.0], [0.0, 0.0, 0.0, 1.0]])  # the error last: it is no feature
    strongest = edge_matches([weights], 2)[0]
    assert strongest.feature.tolist() == [[1, -1], [-1, -1]]


def test_features_over_the_layers_by_hand() -> None:
    clip, sae = clip_of("plain"), sae_of("BatchTopK")
    seeds = list(range(20))
    found = evolution(clip, sae, batches(seeds, 6)(), matches=2)
    features = Features(clip, sae)
    codes = torch.stack(
        [torch.stack(observe_units(clip, features, world.Images([s])[0]["image"][None]).codes) for s in seeds], 1
    ).numpy()  # (layers, images, positions, F)
    fires = codes != 0
    np.testing.assert_allclose(found.frequency, fires.mean((1, 2)), atol=1e-6)
    assert found.n_images == 20
    # mutual information from the table of counts
    layer, feature = 1, int(fires[1].mean((0, 1)).argmax())
    table = np.stack([fires[layer, :, :, feature].sum(0), (~fires[layer, :, :, feature]).sum(0)], 1) / (20 * 10)
    independent = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
    bits = np.nansum(np.where(table > 0, table * np.log2(np.where(table > 0, table, 1) / independent), 0))
    chance = 9 / (2 * 200 * np.log(2))
    assert float(found.selectivity[layer, feature]) == pytest.approx(max(0.0, bits - chance), abs=1e-5)
    # profiles: Spearman by scipy's definition, ties at their mean rank
    from clt_lightning.analysis.circuits.virtual import rank_correlation

    sums = codes.sum(2)  # (layers, images, F)
    match = found.profiles[0]
    some = [f for f in range(world.FEATURES) if match.feature[f, 0] >= 0]
    assert some
    for f in some[:5]:
        with np.errstate(invalid="ignore"):
            every = [
                rank_correlation(torch.tensor(sums[0, :, g]), torch.tensor(sums[1, :, f]))
                for g in range(world.FEATURES)
            ]
        assert float(match.value[f, 0]) == pytest.approx(np.nanmax(every), abs=1e-5)
        assert every[int(match.feature[f, 0])] == pytest.approx(np.nanmax(every), abs=1e-6)
    # weights: cosines, the mean over channels off
    written = sae.W_dec[0][:, 0].detach().numpy()
    read = sae.W_enc[1].detach().numpy()
    written, read = (w - w.mean(1, keepdims=True) for w in (written, read))
    cosines = (read @ written.T) / np.outer(np.linalg.norm(read, axis=1), np.linalg.norm(written, axis=1))
    np.testing.assert_allclose(found.weights[0].value[:, 0], cosines.max(1), atol=1e-5)
    np.testing.assert_array_equal(found.weights[0].feature[:, 0], cosines.argmax(1))
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert len(content["layers"]) == world.LAYERS
    assert content["pairs"][0]["edges"] is None
    with pytest.raises(cl.UserError, match="at least 2 images"):
        evolution(clip, sae, batches([0])())


def test_a_cross_layer_transcoder_s_features_too() -> None:
    clip, clt = clip_of("plain"), clt_of()
    found = evolution(clip, clt, batches([0, 1, 2])())
    assert len(found.weights) == world.LAYERS - 1
    cosines: Matches = weight_matches(clt, 0, 1)
    written = clt.W_dec[0][3, 1].detach()
    feature = int((cosines.feature[:, 0] == 3).nonzero()[0])
    read = clt.W_enc[1][feature].detach()
    wanted = torch.nn.functional.cosine_similarity(written - written.mean(), read - read.mean(), dim=0)
    assert float(cosines.value[feature, 0]) == pytest.approx(float(wanted), abs=1e-5)


def test_edges_are_summed_over_images() -> None:
    clip, sae = clip_of("plain"), sae_of()
    baseline = made_baseline(clip, sae)
    head = torch.nn.functional.normalize(torch.randn(16, 5, generator=torch.Generator().manual_seed(0)), dim=0)
    names = list("abcde")
    images = [(world.Images([i])[0]["image"], label) for i, label in ((0, 2), (1, -1))]
    total = summed_edges(clip, sae, images, baseline, head, names)
    wanted = torch.zeros(world.FEATURES, world.FEATURES + 1)
    for image, label in images:
        own = label if label >= 0 else int((clip.encode_image(image)[0] @ head).argmax())
        target = cl.Target.centred(head, names, own, clip.logit_scale)
        part = relevance(made_model(clip, sae, image), target, baseline).edges[1]
        for reader, row in zip(part.readers.tolist(), part.weight):
            wanted[reader] += row
    torch.testing.assert_close(total[1], wanted, atol=1e-4, rtol=0)
