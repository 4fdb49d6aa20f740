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
from clt_lightning.analysis.circuits.residual.evolution import QUANTILES, RULES, summed_edges
from clt_lightning.analysis.circuits.residual.matches import (
    Chain,
    Matches,
    agreement,
    by_chance,
    chains,
    edge_matches,
    largest_share,
    nearest,
    weight_directions,
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
        decoded = codes @ model.decoders(layer) + sae.bias(layer, stream)
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
    weights[1] = torch.tensor([3.0, 1.0, -5.0, 4.0])
    np.testing.assert_allclose(largest_share(torch.cat([weights, torch.zeros(1, 4)])), [2 / 11, 3 / 8, np.nan])


def test_the_nearest_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.nn.functional.normalize(torch.randn(300, 64, generator=generator), dim=1)
    before[::3] = 0  # these never fire
    after = torch.nn.functional.normalize(before + 0.05 * torch.randn(300, 64, generator=generator), dim=1)
    after[::3] = 0
    related = nearest(before, after, 1)
    assert related.feature[1::3, 0].tolist() == list(range(1, 300, 3))
    assert related.feature[::3].unique().tolist() == [-1]
    for mixed in (False, True):
        found = by_chance(before, after, mixed)
        assert len(found) == 200
        # the largest of 200 cosines in 64 dimensions is .335, and somewhat more in the space of the rows
        assert 0.31 < float(found.median()) < 0.4
    narrow = before @ torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q[:, :2]
    narrow = torch.nn.functional.normalize(torch.cat([narrow, torch.zeros(300, 62)], 1), dim=1)
    assert float(by_chance(narrow, narrow, True).median()) > 0.99, "in two dimensions everybody is near to somebody"
    assert not len(by_chance(torch.zeros(3, 2), after[:, :2], True))


def test_chains_of_features() -> None:
    """Three layers; each layer's nearest ones lead back, and a chain is as strong as its weakest link."""
    nan = float("nan")
    first = Matches(torch.tensor([[0], [2], [1], [-1]]), torch.tensor([[0.9], [0.4], [0.8], [nan]]))
    second = Matches(torch.tensor([[2], [0], [0], [3]]), torch.tensor([[0.7], [0.5], [0.95], [0.99]]))
    found = chains([first, second])
    # feature 3 of the last layer leads nowhere, feature 1 shares two of three features with a stronger chain
    assert [chain.features for chain in found] == [(0, 0, 2), (1, 2, 0)]
    assert found[0].values == pytest.approx((0.9, 0.95))
    assert found[1].to_json() == {"features": [1, 2, 0], "values": [0.8, 0.7]}
    assert [chain.features for chain in chains([first, second], n=1)] == [(0, 0, 2)]
    assert chains([]) == []
    assert isinstance(found[0], Chain)
    assert agreement(first, second) == 0
    assert agreement(first, first) == 1
    assert agreement(first, Matches(torch.full((4, 1), -1), torch.full((4, 1), nan))) is None


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
    alive = fires.any((1, 2))
    assert 0 < (~alive[:2]).sum() < world.FEATURES, "some never fire: these take no part"
    cosines[:, ~alive[0]] = -np.inf
    np.testing.assert_allclose(found.weights[0].value[alive[1], 0], cosines.max(1)[alive[1]], atol=1e-5)
    np.testing.assert_array_equal(found.weights[0].feature[:, 0], np.where(alive[1], cosines.argmax(1), -1))
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [layer["alive"] for layer in content["layers"]] == alive.sum(1).tolist()
    rates = fires.mean((1, 2))[1][alive[1]]
    assert content["layers"][1]["spread"]["frequency"] == pytest.approx(np.quantile(rates, QUANTILES), abs=1e-5)
    assert content["pairs"][0]["weights"]["chance"][2] < content["pairs"][0]["weights"]["spread"][4]
    assert list(content["pairs"][0]["same"]) == ["weights, profiles"]
    assert content["pairs"][0]["edges"] is None
    total = [torch.full((world.FEATURES, world.FEATURES + 1), 20.0) for _ in content["pairs"]]
    total[0][4, 7] = 60.0
    edges = found.with_edges(total).to_json()
    assert edges["pairs"][0]["edges"]["feature"][4][0] == 7
    assert edges["pairs"][0]["edges"]["value"][4][0] == 3.0, "a mean over the 20 images"
    assert edges["pairs"][0]["edges"]["share"][4] == pytest.approx(60 / (60 + 20 * world.FEATURES), abs=1e-6)
    assert set(edges["chains"]) == set(RULES)
    with pytest.raises(cl.UserError, match="at least 2 images"):
        evolution(clip, sae, batches([0])())


def test_a_cross_layer_transcoder_s_features_too() -> None:
    clip, clt = clip_of("plain"), clt_of()
    found = evolution(clip, clt, batches([0, 1, 2])())
    assert len(found.weights) == world.LAYERS - 1
    cosines = nearest(*weight_directions(clt, 0), 1)
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
