"""The graph of a data set: means and errors by hand, virtual weights against the tower, concepts against steering."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from clt_lightning.analysis.circuits.attribution import attribute
from clt_lightning.analysis.circuits.concepts import ablate_concepts, mean_codes, random_features
from clt_lightning.analysis.circuits.expected import EdgeSums, ExpectedGraph, expected_graph
from clt_lightning.analysis.circuits.open_clip_parts import parts_of
from clt_lightning.analysis.circuits.virtual import by_coactivation, rank_correlation, virtual_weights
from clt_lightning.analysis.target import Target
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from tests.analysis import world
from tests.analysis.circuits.circuit_world import a_target, an_image, clip_of, clt_of

F64 = torch.float64
SHAPE = (world.LAYERS, world.FEATURES)


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return clip_of("plain")


def two_targets(embedding: Tensor) -> Target:
    return a_target(0, "one") if float(embedding[0]) > 0 else a_target(1, "two")


def made(clip: FrozenCLIP, per_reader: int = 10_000, n: int = 5) -> tuple[ExpectedGraph, list[Tensor]]:
    images = [an_image(i).float() for i in range(n)]
    batches = [{"image": torch.stack(images[:2])}, {"image": torch.stack(images[2:])}]
    return expected_graph(clip, clt_of(), batches, two_targets, per_reader=per_reader, dtype=F64), images


def test_means_and_errors_are_those_of_the_images(clip: FrozenCLIP) -> None:
    found, images = made(clip)
    base = world.LAYERS * world.FEATURES
    dense = torch.zeros(len(images), base + 2, base, dtype=F64)
    read = [0, 0]
    active = torch.zeros(SHAPE, dtype=torch.int64)
    names: list[str] = []
    of = []
    for i, image in enumerate(images):
        target = two_targets(clip.encode_image(image)[0])
        names += [target.name] * (target.name not in names)
        of.append(names.index(target.name))
        read[of[-1]] += 1
        graph = attribute(clip, clt_of(), image, target, positions="summed", dtype=F64)
        matrix = graph.edges.dense()
        for a in graph.nodes:
            if a.kind == "feature":
                active[a.layer, a.feature] += 1
            if a.kind not in ("feature", "target"):
                continue
            row = a.layer * world.FEATURES + a.feature if a.kind == "feature" else base + of[-1]
            for b in graph.nodes:
                if b.kind == "feature":
                    dense[i, row, b.layer * world.FEATURES + b.feature] = matrix[a.index, b.index]
    assert list(found.target_names) == names
    assert torch.equal(found.active, active)
    assert found.target_images.tolist() == read[: len(names)]
    features = found.between_features
    values = dense[:, found.reader[features], found.source[features]]
    torch.testing.assert_close(found.mean[features], values.mean(0))
    torch.testing.assert_close(found.error[features], values.std(0) / len(images) ** 0.5)
    assert torch.equal(found.count[features], (values != 0).sum(0))
    assert int((dense[:, :base] != 0).any(0).sum()) == int(features.sum())
    for number in range(len(names)):
        here = found.reader == base + number
        mine = dense[[i for i, t in enumerate(of) if t == number]][:, base + number, found.source[here]]
        torch.testing.assert_close(found.mean[here], mine.mean(0))


def test_the_bound_keeps_the_largest(clip: FrozenCLIP) -> None:
    whole, small = made(clip)[0], made(clip, per_reader=5)[0]
    counts = torch.unique(small.reader, return_counts=True)[1]
    assert int(counts.max()) == 5
    assert len(small) < len(whole)
    for reader in small.reader.unique().tolist()[::9]:
        assert small.into(reader, 5, positive=False) == whole.into(reader, 5, positive=False)


def test_chains_go_down_the_layers(clip: FrozenCLIP) -> None:
    found, _ = made(clip)
    name = found.target_names[0]
    chain = found.chain(name, width=2)
    assert [entry[0][0] for entry in chain] == [2, 1, 0]
    strongest = [n for n, _ in found.into(found.target_number(name), 500) if n >= found.number(2, 0)][:2]
    assert [found.number(layer, feature) for layer, feature, _ in chain[0]] == strongest
    with pytest.raises(UserError, match="no image was read for 'three'"):
        found.chain("three")


def test_virtual_weights_are_the_towers_straight_paths(clip: FrozenCLIP) -> None:
    """Without attention the derivative of a pre-activation by a code is the virtual weight times the norm's scale."""
    clt, parts = clt_of(), parts_of(clip)
    source, reader = torch.tensor([3, 7, world.FEATURES + 4]), torch.tensor([2 * world.FEATURES + 5] * 3)
    found = virtual_weights(parts, clt, reader, source)
    norm = clip.blocks[2].ln_2
    for i, (layer, feature) in enumerate(((0, 3), (0, 7), (1, 4))):
        written = torch.zeros(world.WIDTH, dtype=F64)
        for j in range(layer, 2):
            written += clt.W_dec[layer][feature, j - layer].detach().double() * float(clt.y_scale[j])
        normed = (written - written.mean()) * norm.weight.double()  # type: ignore[operator, union-attr]
        expected = float(normed @ clt.W_enc[2][5].detach().double()) * float(clt.x_scale[2])
        assert float(found[i]) == pytest.approx(expected, rel=1e-5)
    graph, _ = made(clip)
    here, weights, cheap = by_coactivation(parts, clt, graph)
    assert len(weights) == len(cheap) == int(here.sum())
    torch.testing.assert_close(cheap, weights * graph.count[here] / 5)
    assert -1 <= rank_correlation(graph.mean[here], cheap) <= 1
    with pytest.raises(UserError, match="'sae' has none"):
        virtual_weights(parts, clt_of(topology="sae"), reader, source)


def test_rank_correlation_by_hand() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    # ranks 1 2.5 2.5 4 against 1 2 3 4
    assert rank_correlation(torch.tensor([0.0, 5.0, 5.0, 9.0]), a) == pytest.approx(0.9486833)
    assert np.isnan(rank_correlation(torch.ones(4), a))


def test_concepts_at_their_mean(clip: FrozenCLIP) -> None:
    clt = clt_of()
    images = [an_image(i).float() for i in range(4)]
    head = torch.nn.functional.normalize(torch.randn(16, 5, generator=torch.Generator().manual_seed(0)), dim=0)
    means = mean_codes(clip, clt, [an_image(100 + i).float() for i in range(3)])
    graph, _ = made(clip)
    concepts = [(n // world.FEATURES, n % world.FEATURES) for n, _ in graph.into(graph.active.numel(), 4)]
    chance = random_features(graph.active, 4, 0)
    assert len(set(chance)) == 4
    assert all(int(graph.active[place]) > 0 for place in chance)
    arms = {"concepts": concepts, "random": chance}
    found = ablate_concepts(clip, clt, images, head, 2, arms, means, draws=50)
    before = torch.stack([(100 * clip.encode_image(i)[0] @ head).softmax(0)[2] for i in images])
    np.testing.assert_allclose(found.table["none"], before.numpy(), rtol=1e-3, atol=1e-6)
    assert set(found.probability) == {"none", "concepts", "random"}
    assert found.probability["none"].value == pytest.approx(float(before.mean()), rel=1e-3)
    # by hand, layer by layer in the library's own forward
    image, changes = images[0], {}

    def watch(layer: int, x: Tensor) -> None:
        codes = clt.encode_layer(x.flatten(0, 1), layer).dense_layer(0)
        for at, feature in concepts:
            if at == layer:
                changes[at, feature] = means[layer, :, feature] - codes[:, feature]

    def branch(layer: int, x: Tensor, compute_y: object) -> Tensor:
        y: Tensor = compute_y()  # type: ignore[operator]
        for (at, feature), change in changes.items():
            if clt.writes(at, layer):
                y = y + change[:, None] * clt.W_dec[at][feature, layer - at] * clt.y_scale[layer]
        return y

    with torch.no_grad(), clip.watch(watch), clip.mlp_override(branch):
        after = (100 * clip.encode_image(image)[0] @ head).softmax(0)[2]
    assert found.table["concepts"][0] == pytest.approx(float(after), rel=1e-3, abs=1e-6)


def test_mistakes_are_told(clip: FrozenCLIP) -> None:
    with pytest.raises(UserError, match="at least one image"):
        EdgeSums(3, 40).result()
    with pytest.raises(UserError, match="positions='summed'"):
        EdgeSums(3, 40).add(attribute(clip, clt_of(), an_image(), a_target()))
    head, means = torch.eye(16)[:, :3], torch.zeros(3, world.POSITIONS, 40)
    image = [an_image().float()]
    with pytest.raises(UserError, match="no feature 0/99"):
        ablate_concepts(clip, clt_of(), image, head, 0, {"a": [(0, 99)]}, means)
    with pytest.raises(UserError, match="may not be called 'none'"):
        ablate_concepts(clip, clt_of(), image, head, 0, {"none": [(0, 1)]}, means)
