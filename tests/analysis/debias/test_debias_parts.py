"""The parts of debiasing: the edit against the interventions, relevance against finite differences, scores by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clt_lightning.analysis.circuits.concepts import mean_codes
from clt_lightning.analysis.circuits.forward import embed_stream
from clt_lightning.analysis.circuits.image_model import model_of_image
from clt_lightning.analysis.circuits.nodeset import NodeEdit, NodeSet
from clt_lightning.analysis.circuits.rerun import rerun
from clt_lightning.analysis.debias.choose import by_circuits, by_coactivation, by_codes, by_target, in_circuit, ordered
from clt_lightning.analysis.debias.codes import MeanCodes
from clt_lightning.analysis.debias.controls import Heads, matched, projected
from clt_lightning.analysis.debias.groups import Groups, scores
from clt_lightning.analysis.debias.predictor import Head, Reservoir, Sample
from clt_lightning.analysis.debias.relevance import Relevance, relevance_of
from clt_lightning.analysis.debias.truth import auroc
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.core.sites import Sites
from clt_lightning.interventions.mean_ablation import mean_ablated
from clt_lightning.transcoder import CrossLayerTranscoder, TopK
from tests.analysis import world


def pictures(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, world.SIZE, world.SIZE, generator=torch.Generator().manual_seed(seed))


def an_sae(normalize: Any = "layer") -> CrossLayerTranscoder:
    torch.manual_seed(0)
    sites = Sites("resid_post", "resid_post", layers=[0, 1])
    return CrossLayerTranscoder(
        n_layers=2, d_model=world.WIDTH, n_features=30, activation=TopK(4), topology="sae", sites=sites,
        normalize=normalize,
    ).eval()  # fmt: skip


def a_head(seed: int = 0) -> Head:
    generator = torch.Generator().manual_seed(seed)
    return Head(10 * torch.randn(16, 3, generator=generator), torch.randn(3, generator=generator), "made")


def a_sample(n: int = 6) -> Sample:
    return Sample(pictures(n, 5), torch.arange(n) % 3, torch.arange(n) % 2)


def test_an_edit_of_a_batch_is_the_intervention_image_by_image(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    images, features = pictures(3), [(0, 3), (0, 7), (1, 5), (2, 2)]
    means = mean_codes(clip, clt, pictures(5, 9), batch=2)
    acts = clip.capture(pictures(5, 9))
    dense = clt.encode(acts.y if clt.topology == "sae" else acts.x).dense().detach()
    assert torch.allclose(means, dense.unflatten(1, (5, -1)).mean(1), atol=1e-6)
    with mean_ablated(clip, clt, features, means):
        found = clip.encode_image(images)
    edits = [
        NodeEdit(layer, feature, position, "feature", "set", float(means[layer, position, feature]))
        for layer, feature in features
        for position in range(world.POSITIONS)
    ]
    for image, embedding in zip(images, found):
        model = model_of_image(clip, clt, image, skip="through")
        finals = rerun(model, [NodeSet(tuple(edits), "a")], "live", codes=False).final
        wanted = torch.nn.functional.normalize(embed_stream(model.parts, finals)[0].float(), dim=-1)
        assert torch.allclose(embedding, wanted, atol=1e-4)
    plain = clip.encode_image(images)
    assert not torch.allclose(plain, found, atol=1e-3)
    with mean_ablated(clip, clt, [], means):
        assert torch.equal(clip.encode_image(images), plain)


@pytest.mark.parametrize("normalize", ["layer", "token"])
def test_of_an_autoencoder_the_stream_itself_is_changed(clip: FrozenCLIP, normalize: str) -> None:
    sae, images = an_sae(normalize), pictures(2)
    means = torch.rand(2, world.POSITIONS, 30)
    before = clip.read(images, "resid_post", [1])["resid_post"][0]
    codes = sae.encode_layer(before, 1).dense_layer(0)
    feature = int(codes.abs().sum(0).argmax())
    with mean_ablated(clip, sae, [(1, feature)], means):
        after = clip.read(images, "resid_post", [1])["resid_post"][0]
    change = means[1, :, feature].repeat(2) - codes[:, feature]
    wanted = sae.in_units(change[:, None] * sae.W_dec[1][feature, 0] * sae.y_scale[1], before)
    assert torch.allclose(after - before, wanted.detach(), atol=1e-4)


def test_mistakes_of_an_edit(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    means = torch.zeros(3, world.POSITIONS, world.FEATURES)
    for features, said in (([(0, 99)], "no feature 0/99"), ([(5, 1)], "no feature 5/1"), ([(0, 1)] * 2, "named twice")):
        with pytest.raises(UserError, match=said), mean_ablated(clip, clt, features, means):
            pass
    with pytest.raises(UserError, match="mean codes must be"), mean_ablated(clip, clt, [(0, 1)], means[:2]):
        pass


@pytest.mark.parametrize("kind", ["clt", "sae"])
def test_relevance_is_the_slope_of_the_margin(clip: FrozenCLIP, clt: CrossLayerTranscoder, kind: str) -> None:
    units, head, sample = (clt if kind == "clt" else an_sae("token")), a_head(), a_sample()
    means = mean_codes(clip, units, pictures(4, 2))
    found = relevance_of(clip, units, sample, head, means, batch=4)
    for layer in range(units.n_layers):
        features = [(layer, f) for f in range(units.n_features)]
        margins = []
        for amount in (-0.002, 0.002):
            with mean_ablated(clip, units, features, means, amount):
                margins.append(head.margin(clip.encode_image(sample.images), sample.labels))
        slope = (margins[0] - margins[1]) / 0.004
        assert torch.allclose(found.values[:, layer].sum(1), slope, rtol=0.05, atol=0.02)
    assert found.activity.shape == found.values.shape == (6, units.n_layers, units.n_features)


def test_heads_add_up_and_an_ablation_leaves_the_mean(clip: FrozenCLIP) -> None:
    heads, images = Heads(clip), pictures(4)
    written = heads.writes(images)
    out = clip.read(images, "attn_out")["attn_out"].unflatten(1, (4, -1))[:, :, 0]  # (layers, images, d)
    bias = torch.stack([block.attn.out_proj.bias for block in clip.model.visual.transformer.resblocks])
    assert torch.allclose(written.sum(2).transpose(0, 1) + bias[:, None], out, atol=1e-4)
    means = heads.means(Sample(images, torch.zeros(4), torch.zeros(4)))
    before = clip.read(images, "resid_post", [2])["resid_post"][0].unflatten(0, (4, -1))
    with heads.ablated([(0, 1), (2, 0)], means):
        after = clip.read(images, "resid_post", [2])["resid_post"][0].unflatten(0, (4, -1))
    change = (means[0, 1] - written[:, 0, 1]) + (means[2, 0] - written[:, 2, 0])
    assert torch.allclose((after - before)[:, 0], change, atol=1e-4)
    assert torch.equal(after[:, 1:], before[:, 1:])
    order = heads.ranked(a_sample(), a_head(), Groups(2, 2, ("a", "b")))
    assert sorted(order) == [(layer, head) for layer in range(3) for head in range(2)]


def test_projection_leaves_the_mean_along_a_direction(clip: FrozenCLIP) -> None:
    images, direction = pictures(3), torch.nn.functional.normalize(torch.randn(16, 1), dim=0)
    mean = torch.randn(16)
    with projected(clip, direction, mean):
        found = clip.encode_image(images, normalize=False)
    assert torch.allclose(found @ direction, (mean @ direction).expand(3, 1), atol=1e-5)
    unit = clip.encode_image(images)
    across = torch.eye(16) - direction @ direction.T
    assert torch.allclose(found @ across, unit @ across, atol=1e-5)


def test_groups_from_labels() -> None:
    # 64 classes of two kinds, as the demo has them
    labels = torch.arange(128) % 64
    groups = 2 * (labels // 32) + torch.arange(128) // 64
    found = Groups.of(labels, groups, None)
    assert (found.n, found.attributes) == (4, 2)
    assert found.attribute(groups).tolist() == (groups % 2).tolist()
    chosen = groups[found.balanced(torch.cat([groups, groups[:3]]), 0) % 128]
    assert torch.bincount(chosen).unique().numel() == 1
    three = Groups.of(torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(6), ["a", "b", "c", "d", "e", "f"])
    assert three.attributes == 3
    for own, of, names, said in (
        ([0, 0], [0, 1], None, "one class"),
        ([0, 1], [0, 1], None, "one group alone"),
        ([0, 0, 1], [0, 1, 2], ["a", "b", "c", "d"], "no image of group 'd'"),
        ([0, 0, 1, 1], [0, 3, 1, 2], None, "not numbered"),
    ):
        with pytest.raises(UserError, match=said):
            Groups.of(torch.tensor(own), torch.tensor(of), names)


def test_scores_by_hand() -> None:
    groups = torch.tensor([0, 0, 1, 1, 1, 1])
    before = np.array([1, 1, 0, 0, 0, 1])
    first, second = np.array([1, 0, 1, 1, 0, 1]), np.array([1, 1, 0, 0, 0, 1])
    found = scores(np.stack([first, second]), before, groups, 2, 50, 0)
    assert [g.value for g in found.groups] == [0.75, 0.5]
    assert found.worst.value == pytest.approx((0.5 + 0.25) / 2)  # each draw's own worst
    assert found.overall.value == pytest.approx((4 + 3) / 12)
    assert found.change["worst"].value == pytest.approx(0.375 - 0.25)
    assert (found.to_right, found.to_wrong) == (1.0, 0.5)
    same = scores(before, before, groups, 2, 50, 0)
    assert (same.change["worst"].low, same.change["worst"].high, same.to_right, same.to_wrong) == (0, 0, 0, 0)


def made_relevance(n: int = 80, biased: bool = True) -> tuple[Relevance, Groups]:
    """Two classes and a cue. Feature 0 carries the class, 1 and 2 the cue, 3 is always on, 4 does nothing."""
    rng = np.random.default_rng(int(biased))
    labels = torch.arange(n) % 2
    cue = torch.from_numpy(np.where(rng.random(n) < (0.95 if biased else 0.5), labels, 1 - labels))
    noise = torch.from_numpy(rng.random((n, 5))).float() / 10
    on = torch.stack([labels, cue, 1 - cue, torch.ones(n), cue], 1).float()
    activity = on * (1 + noise)
    does = torch.tensor([5.0, 1.0, 1.0, 0.5, 0.0])
    sign = torch.stack(
        [torch.ones(n), 2.0 * (cue == labels) - 1, 2.0 * (cue == labels) - 1, torch.ones(n), torch.ones(n)], 1
    )
    values = sign * does * (1 + noise)
    values[:, [1, 2]] *= on[:, [1, 2]]
    return Relevance(values[:, None], activity[:, None], labels, 2 * labels + cue), Groups(4, 2, tuple("abcd"))


def as_codes(found: Relevance) -> MeanCodes:
    n = len(found.labels)
    return MeanCodes(found.activity, found.labels, found.groups, torch.zeros(n, 2), torch.arange(n))


def test_the_carriers_of_a_cue_come_first() -> None:
    found, groups = made_relevance(400)
    unbiased = as_codes(made_relevance(400, biased=False)[0])
    assert set(ordered(by_circuits(found, groups))[:2]) == {(0, 1), (0, 2)}
    for score in (by_codes(as_codes(found), groups), by_coactivation(as_codes(found), unbiased)):
        assert set(ordered(score)[:3]) == {(0, 1), (0, 2), (0, 4)}
        # the last one tells the cue and does nothing
        assert set(ordered(score, in_circuit(found))[:2]) == {(0, 1), (0, 2)}
    assert float(by_target(found, unbiased)[0, 4]) == 0
    assert ordered(torch.tensor([[0.0, 2.0], [-1.0, 3.0]])) == [(1, 1), (0, 1)]


def test_auroc_counts_ties_half() -> None:
    found = auroc(torch.tensor([[1.0, 1.0], [2.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.5, 1.0]]))
    assert found.tolist() == pytest.approx([(1.5 + 3) / 6, 0.5])


def test_random_features_are_of_equal_activity() -> None:
    activity = torch.linspace(0, 1, 200).repeat(2, 1)
    features = [(0, 50), (1, 150), (1, 151)]
    drawn = matched(features, activity, 0)
    assert [layer for layer, _ in drawn] == [0, 1, 1]
    assert len(set(drawn) | set(features)) == 6
    assert all(abs(a - b) <= 12 for (_, a), (_, b) in zip(features, drawn))
    assert matched(features, activity, 1) != drawn


def test_a_reservoir_is_an_even_sample() -> None:
    counts = torch.zeros(20)
    for seed in range(300):
        kept = Reservoir(5, seed)
        for i in range(20):
            kept.add(torch.tensor([float(i)]), i, 0, 0)
        sample = kept.sample()
        assert len(sample.labels) == kept.sampled == 5
        counts[sample.labels] += 1
    assert float(counts.min()) > 45
    assert float(counts.max()) < 110
