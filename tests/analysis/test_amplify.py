"""VS2 and its controls on a tiny CLIP: what is added, what stays, what is chosen, what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clt_lightning as cl
from clt_lightning.analysis.amplify import Amplifier, AmplifyOptions, AmplifyResult, Gate, GateBy, amplified, amplify
from clt_lightning.analysis.amplify.arms import Choice, candidates
from clt_lightning.analysis.amplify.training import contrast, mixed, read_training, same_side, votes
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder

from .world import CLASSES, FEATURES, LAYERS, POSITIONS, TEMPLATES, WIDTH, Images, make_clt

pytestmark = pytest.mark.filterwarnings("ignore:this CLIP has random weights")


def split(start: int, n: int, size: int = 16, labels: bool = True) -> list[dict[str, Any]]:
    samples = [Images(list(range(start, start + n)))[i] for i in range(n)]
    made = []
    for i in range(0, n, size):
        part = samples[i : i + size]
        batch = {"image": torch.stack([s["image"] for s in part]), "key": [s["key"] for s in part]}
        made.append(batch | ({"label": torch.tensor([s["label"] for s in part])} if labels else {}))
    return made


def splits(**changed: Any) -> dict[str, list[dict[str, Any]]]:
    return {"train": split(1000, 60), "val": split(2000, 40), "test": split(0, 50), **changed}


def head_of(clip: FrozenCLIP) -> Tensor:
    return clip.zero_shot_head(CLASSES, TEMPLATES, progress=False)


def autoencoder(layers: list[int], read: Any = "resid_post", **options: Any) -> CrossLayerTranscoder:
    sites = cl.Sites(read, layers=None if read.startswith("final") else layers)
    width = 16 if read == "final" else WIDTH
    made = cl.CrossLayerTranscoder(len(layers), width, FEATURES, cl.AbsTopK(6), "sae", sites=sites, seed=1, **options)
    with torch.no_grad():
        for W in made.W_dec:
            W.normal_(generator=torch.Generator().manual_seed(4)).mul_(0.2)
        made.b_dec.normal_(generator=torch.Generator().manual_seed(5))
    return made.eval()


def perfect(clip: FrozenCLIP, centre: Tensor, doubled: bool) -> CrossLayerTranscoder:
    """An autoencoder of the last stream that rebuilds everything: codes are the deviation from the mean."""
    n = 2 * WIDTH if doubled else WIDTH
    activation = cl.ReLU() if doubled else cl.AbsTopK(WIDTH)
    sae = cl.CrossLayerTranscoder(1, WIDTH, n, activation, "sae", sites=cl.Sites("resid_post", layers=[-1]))
    one = torch.eye(WIDTH)
    rows = torch.cat([one, -one]) if doubled else one
    with torch.no_grad():
        sae.W_enc[0].copy_(rows)
        sae.b_enc[0] = -(rows @ centre)
        sae.W_dec[0].copy_(rows[:, None])
        sae.b_dec[0] = centre
    return sae.eval()


@pytest.mark.parametrize("doubled", [False, True], ids=["AbsTopK", "ReLU"])
def test_with_a_perfect_autoencoder_it_is_the_centroid_arm(clip: FrozenCLIP, doubled: bool) -> None:
    train = torch.cat([b["image"] for b in split(1000, 60)])
    centre = clip.read(train, "resid_post", [LAYERS - 1])["resid_post"][0].view(60, POSITIONS, -1)[:, 0].mean(0)
    sae = perfect(clip, centre, doubled)
    amplifier = Amplifier(clip, sae)
    training = read_training(amplifier, split(1000, 60), head_of(clip))
    assert float(training.fvu.max()) < 1e-8
    observed = amplifier.observe(split(0, 16)[0]["image"])
    for alpha in (0.3, 2.0):
        own = amplifier.embed(observed, lambda _, seen, a=alpha: a * seen.terms.sum(0))  # type: ignore[misc]
        other = amplifier.embed(observed, lambda p, seen, a=alpha: a * (seen.x - training.x_means[p]))  # type: ignore[misc]
        torch.testing.assert_close(own, other, atol=1e-5, rtol=0)
        assert not torch.allclose(own, observed.embeddings, atol=1e-3)
    found = amplify(clip, sae, splits(), head_of(clip), CLASSES, AmplifyOptions(gammas=(1.7,), draws=50))
    assert np.array_equal(found.predicted["vs2"], found.predicted["centroid"])


KINDS = {
    "clt": lambda: make_clt(),
    "skip": lambda: make_clt("cross_layer", True),
    "per_layer": lambda: make_clt("per_layer"),
    "mlp_out": lambda: make_clt("sae"),
    "last": lambda: autoencoder([2]),
    "stream": lambda: autoencoder([0, 1, 2]),
    "token": lambda: autoencoder([1, 2], normalize="token"),
    "before": lambda: autoencoder([0, 2], "resid_pre"),
    "middle": lambda: autoencoder([1], "resid_mid"),
    "tokens": lambda: autoencoder([0], "final_tokens"),
    "final": lambda: autoencoder([0], "final"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_gamma_of_one_changes_nothing_to_the_last_bit(clip: FrozenCLIP, kind: str) -> None:
    images = split(0, 8)[0]["image"]
    clt = KINDS[kind]()
    before = clip.encode_image(images)
    with amplified(clip, clt, 1.0, strength=3.0):
        assert torch.equal(clip.encode_image(images), before)
    with amplified(clip, clt, 2.0):
        assert not torch.allclose(clip.encode_image(images), before, atol=1e-4)
    assert torch.equal(clip.encode_image(images), before)
    found = amplify(clip, clt, splits(), head_of(clip), CLASSES, AmplifyOptions(gammas=(1.0,), draws=20))
    for arm in ("vs2", "vs2_gated", "centroid", "random", "vs2pp_majority", "vs2pp_query"):
        assert found[arm].changed == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_study_runs_the_model_that_anyone_can_run(clip: FrozenCLIP, kind: str) -> None:
    images, clt = split(0, 8)[0]["image"], KINDS[kind]()
    amplifier = Amplifier(clip, clt)
    observed = amplifier.observe(images)
    torch.testing.assert_close(observed.embeddings, clip.encode_image(images))
    quick = amplifier.embed(observed, lambda _, seen: 1.5 * seen.terms.sum(0))
    with amplified(clip, clt, 2.5):
        torch.testing.assert_close(quick, clip.encode_image(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [None, [1], [0, 2]])
def test_what_a_transcoder_adds_is_the_sum_over_targets(clip: FrozenCLIP, layers: list[int] | None) -> None:
    clt, images = make_clt(), split(0, 8)[0]["image"]
    acts = clip.capture(images)
    codes = clt.encode(acts.x).dense().view(LAYERS, 8, POSITIONS, -1)[:, :, 0]
    expected = sum(
        codes[i] @ clt.W_dec[i][:, j - i] * clt.y_scale[j]
        for i in (range(LAYERS) if layers is None else layers)
        for j in range(i, LAYERS)
    )
    seen = Amplifier(clip, clt, layers).observe(images).seen[0]
    torch.testing.assert_close(seen.terms.sum(0), expected, atol=1e-5, rtol=1e-5)
    y, y_hat = seen.rebuilt
    rebuilt = clt(acts.x).y_hat.view(LAYERS, 8, POSITIONS, -1)[min(layers or [0]) :, :, 0]
    torch.testing.assert_close(y_hat, rebuilt, atol=1e-5, rtol=1e-5)
    means = y.mean(1)
    by_hand = (y - y_hat).square().sum(2) / (y - means[:, None]).square().sum(2)
    torch.testing.assert_close(seen.fvu(means), by_hand)


def test_the_moved_stream_keeps_its_length(clip: FrozenCLIP) -> None:
    images, sae = split(0, 8)[0]["image"], autoencoder([0, 1, 2])
    before = clip.read(images, "resid_post")["resid_post"].view(LAYERS, 8, POSITIONS, -1)
    with amplified(clip, sae, 3.0, layers=[1]):
        after = clip.read(images, "resid_post")["resid_post"].view(LAYERS, 8, POSITIONS, -1)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1][:, 1:], after[1][:, 1:])
    torch.testing.assert_close(before[1][:, 0].norm(dim=1), after[1][:, 0].norm(dim=1))
    codes = sae.encode_layer(before[1][:, 0], 1).dense_layer(0)
    wanted = before[1][:, 0] + 2.0 * codes @ sae.W_dec[1][:, 0]
    torch.testing.assert_close(F.normalize(after[1][:, 0], dim=1), F.normalize(wanted, dim=1), atol=1e-5, rtol=1e-4)


def test_the_two_definitions_of_the_same_side() -> None:
    near = torch.tensor([[2, 1, 1, 2, 3], [4, 4, 4, 4, 4], [0, 1, 2, 3, 4]])
    majority = same_side(near, None)
    assert majority.tolist() == [[True, False, False, True, False], [True] * 5, [True, False, False, False, False]]
    own = same_side(near, torch.tensor([3, 0, 4]))
    assert own.sum(1).tolist() == [1, 0, 1]


def test_the_contrast_is_the_difference_of_means() -> None:
    terms = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    near = torch.tensor([[1, 5, 7], [2, 3, 4], [8, 9, 10]])
    same = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    found = contrast(terms, near, same)
    torch.testing.assert_close(found[0], (terms[1] + terms[7]) / 2 - terms[5])
    torch.testing.assert_close(found[1], terms[2:5].mean(0))
    assert not found[2].any()


def test_votes_and_mixtures() -> None:
    labels, cosines = torch.tensor([[1, 0, 0], [-1, 2, 2]]), torch.tensor([[0.9, 0.89, 0.89], [0.9, 0.1, 0.1]])
    assert votes(labels, cosines, 3).argmax(1).tolist() == [0, 2]
    known = F.normalize(torch.randn(9, 4), dim=1)
    mine = F.normalize(torch.randn(2, 4), dim=1)
    near = torch.tensor([[0, 3, 4], [1, 2, 8]])
    torch.testing.assert_close(mixed(mine, near, cosines, known, 0.0), mine)
    weights = (cosines / 0.07).softmax(1)
    mean = torch.stack([weights[i] @ known[near[i]] for i in range(2)])
    torch.testing.assert_close(mixed(mine, near, cosines, known, 0.4), F.normalize(0.6 * mine + 0.4 * mean, dim=1))


def test_candidates_go_from_small_to_large() -> None:
    tried = candidates("vs2", (3.0, 1.1, 0.0), (1.0, 2.0), (0.9,), 50)
    sizes = [abs(choice.alpha) for choice in tried]
    assert sizes == sorted(sizes)
    assert len(tried) == 6
    assert candidates("knn", (2.0,), (1.0,), (0.9,), 7) == [Choice(k=1), Choice(k=5)]


@pytest.fixture(scope="module")
def found(clip: FrozenCLIP) -> AmplifyResult:
    made = splits()
    outside = {"far": [torch.full((5, 3, 24, 24), 40.0) * torch.randn(5, 1, 1, 1)]}
    options = AmplifyOptions(gammas=(1.5, 3.0), quantiles=(0.5,), neighbours=9, draws=200)
    return amplify(
        clip, make_clt(), made, head_of(clip), CLASSES, options, ensemble=head_of(clip).flip(1), outside=outside
    )


def test_choices_come_from_validation_and_numbers_from_test(clip: FrozenCLIP, found: AmplifyResult) -> None:
    labels = torch.cat([b["label"] for b in split(0, 50)])
    known = labels >= 0
    images = torch.cat([b["image"] for b in split(0, 50)])[known]
    plain = clip.logits(clip.encode_image(images), head_of(clip)).argmax(1)
    assert found["none"].accuracy.value == pytest.approx(float((plain == labels[known]).float().mean()))
    for arm in found.arms:
        best = max(value for _, value in arm.tried)
        assert arm.val == best
        right = found.predicted[arm.name] == found.labels
        assert arm.accuracy.value == pytest.approx(right.mean())
        assert arm.difference.value == pytest.approx((arm.won - arm.lost) / len(found.labels))
        assert arm.difference.low <= arm.difference.value <= arm.difference.high
    with amplified(clip, make_clt(), float(found["vs2"].choice.gamma or 0)):
        steered = clip.logits(clip.encode_image(images), head_of(clip)).argmax(1)
    assert np.array_equal(found.predicted["vs2"], steered.numpy())
    assert found.images == {"train": 60, "val": 32, "test": 40}


def test_the_gate_is_of_each_layer_by_itself(clip: FrozenCLIP, found: AmplifyResult) -> None:
    gated = found["vs2_gated"]
    assert gated.steered_layers is not None
    assert len(gated.steered_layers) == LAYERS
    assert 0 < max(gated.steered_layers) <= float(gated.steered or 0) <= 1
    assert found.outside["far"]["images"] == 5
    training = read_training(Amplifier(clip, make_clt()), split(1000, 60), head_of(clip))
    for layer, (low, limit) in enumerate(found.limits[0.5]["fvu"]):
        assert low is None
        assert limit is not None
        assert float((training.fvu[layer] <= limit).float().mean()) == pytest.approx(0.5, abs=0.02)
    closed = AmplifyOptions(gammas=(3.0,), quantiles=(1e-9,), draws=20, arms=["vs2_gated"])
    shut = amplify(clip, make_clt(), splits(), head_of(clip), CLASSES, closed)
    assert shut["vs2_gated"].changed <= round(len(shut.labels) * float(shut["vs2_gated"].steered or 0))


@pytest.mark.parametrize("by", ["fvu", "domain"])
def test_a_gate_lets_through_what_is_of_its_kind(by: GateBy) -> None:
    """Known tensors: new ones of the same kind at the rate that was asked for, and by domain no others."""
    torch.manual_seed(0)
    n, d, mix = 4000, 6, torch.randn(6, 6)

    def made(count: int, scale: float = 1.0, error: float = 0.3) -> tuple[Tensor, Tensor]:
        y = torch.stack([scale * torch.randn(count, d) @ mix + 5, scale * torch.randn(count, d)], 1)
        return y, (error * (y - y.mean(0))).square().sum(2) * torch.rand(count, 2)

    gate = Gate.fit(by, *made(n))
    if by == "fvu":  # torch's own takes no more than 2^24 numbers
        for quantile in (0.1, 0.5, 0.937, 1.0):
            wanted = torch.quantile(gate.scores.double(), quantile, dim=2).float()
            assert torch.equal(gate.limits(quantile)[..., 1], wanted)

    def share(y: Tensor, error: Tensor, quantile: float) -> list[float]:
        found = gate.read(y, error, slice(0, 2))
        low, high = gate.limits(quantile)[:, :, :, None].unbind(2)
        shares: list[float] = ((found >= low) & (found <= high)).all(0).float().mean(1).tolist()
        return shares

    for quantile in (0.9, 0.98):
        # Bonferroni: at least the quantile, and at most half of the rest more
        assert all(quantile - 0.012 <= s <= (1 + quantile) / 2 + 0.012 for s in share(*made(4000), quantile))
    assert share(*made(500, error=3.0), 0.9) == pytest.approx([0, 0], abs=0.06)
    y, error = made(500)
    shifted, simple = (y + 50, error), (y, 1e-6 * error)
    if by == "domain":
        assert share(*shifted, 0.9) == share(*simple, 0.9) == share(*made(500, scale=0.01), 0.9) == [0, 0]
        with pytest.raises(UserError, match=r"quantile 0\.99 needs 798 training images or more: with 60"):
            Gate.fit(by, *made(60)).limits(0.99)
        assert not Gate.fit(by, *made(798)).limits(0.99).isinf().any()
        assert Gate.fit(by, *made(60)).limits(1.0).isinf().all()
    else:
        # what is easy to rebuild is let through, wherever it lies
        assert share(*shifted, 0.9) == share(*simple, 0.9) == [1, 1]


def test_the_distance_is_mahalanobis(clip: FrozenCLIP) -> None:
    mix = torch.tensor([[1.0, 0.5, 0, 0, 0], [0, 1, 0.5, 0, 0], [0, 0, 2, 0, 0], [0, 0, 0, 1, 0.5], [0, 0, 0, 0, 1]])
    y = torch.randn(3000, 1, 5, generator=torch.Generator().manual_seed(1)) @ mix + 3
    gate = Gate.fit("domain", y, torch.ones(3000, 1))
    covariance = torch.cov(y[::2, 0].T.double())
    other = y[:20] + 1
    deviations = (other[:, 0] - y[::2, 0].mean(0)).double()
    by_hand = (deviations @ covariance.inverse() * deviations).sum(1) / 5
    found = gate.read(other, torch.ones(20, 1), slice(0, 1))[1, 0].double()
    torch.testing.assert_close(found, by_hand, rtol=0.02, atol=1e-3)
    # fewer images than dimensions: shrunk, and finite
    few = Gate.fit("domain", torch.randn(8, 1, 40), torch.ones(8, 1))
    assert few.scores.isfinite().all()
    # through the study
    options = AmplifyOptions(gammas=(2.0,), quantiles=(0.8,), gate_by="domain", draws=20, arms=["vs2_gated"])
    study = amplify(clip, make_clt(), splits(train=split(1000, 120)), head_of(clip), CLASSES, options)
    assert set(study.limits[0.8]) == {"fvu", "distance"}
    assert study.to_json()["gate"]["by"] == "domain"
    assert 0 < float(study["vs2_gated"].steered or 0) <= 1


def test_the_record_is_plain(found: AmplifyResult) -> None:
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    names = [arm["name"] for arm in record["arms"]]
    assert names[:3] == ["none", "vs2", "vs2_gated"]
    assert len(names) == 13
    assert record["left_out"] == {}
    assert set(record["predicted"]) == set(names)
    assert "untouched" in found._repr_html_()


def test_without_training_labels_arms_are_left_out_and_said(clip: FrozenCLIP) -> None:
    bare = splits(train=split(1000, 30, labels=False))
    options = AmplifyOptions(gammas=(2.0,), draws=20)
    got = amplify(clip, make_clt(), bare, head_of(clip), CLASSES, options)
    assert {arm: why for arm, why in got.left_out.items() if arm != "ensemble"} == dict.fromkeys(
        ("vs2pp_oracle", "knn", "probe"), "the training images have no labels"
    )
    asked = AmplifyOptions(arms=["knn"])
    with pytest.raises(UserError, match="arm knn cannot be run: the training images have no labels"):
        amplify(clip, make_clt(), bare, head_of(clip), CLASSES, asked)


def of_one_class() -> list[dict[str, Any]]:
    return [batch | {"label": torch.full_like(batch["label"], 2)} for batch in split(2000, 20)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": []}, "needs training images"),
        ({"val": []}, "split 'val' has no images"),
        ({"val": split(0, 10, labels=False)}, "split 'val' has no labels"),
        ({"test": split(0, 10, labels=False)}, "split 'test' has no labels"),
        ({"val": of_one_class()}, "split 'val': all labelled images are of one class"),
        ({"test": [b | {"label": b["label"] + 7} for b in split(0, 8)]}, "is beyond the 5 classes"),
    ],
)
def test_data_that_cannot_do_are_refused(clip: FrozenCLIP, changed: dict[str, Any], message: str) -> None:
    options = AmplifyOptions(gammas=(2.0,), draws=20, arms=["vs2"])
    with pytest.raises(UserError, match=message):
        amplify(clip, make_clt(), splits(**changed), head_of(clip), CLASSES, options)


def test_what_cannot_be_is_refused(clip: FrozenCLIP) -> None:
    with pytest.raises(UserError, match="one class says nothing"):
        amplify(clip, make_clt(), splits(), head_of(clip)[:, :1], CLASSES[:1])
    with pytest.raises(UserError, match="no arm 'vs3'"):
        AmplifyOptions(arms=["vs3"])
    with pytest.raises(UserError, match=r"quantile of the gate lies in \(0, 1\]"):
        AmplifyOptions(quantiles=(99.0,))
    with pytest.raises(UserError, match="finite"):
        AmplifyOptions(gammas=(float("nan"),))
    with pytest.raises(UserError, match="stands at blocks"):
        Amplifier(clip, autoencoder([2]), [1])
    with pytest.raises(UserError, match="do not exist"):
        Amplifier(clip, make_clt(), [7])


@pytest.mark.parametrize("site", ["mlp_out", "attn_out", "resid_post"])
def test_standardised_tokens_come_back_in_each_targets_own_units(clip: FrozenCLIP, site: str) -> None:
    sae = autoencoder(list(range(LAYERS)), site, normalize="token")
    images = split(0, 8)[0]["image"]
    kept: dict[int, Tensor] = {}
    with clip.watch(lambda block, x: kept.__setitem__(block, x[:, 0].clone()), None, site):
        clip.encode_image(images)
    amplifier = Amplifier(clip, sae)
    for place, seen in zip(amplifier.places, amplifier.observe(images).seen):
        for row, target in enumerate(place.targets):
            codes = {target: sae.encode_layer(kept[target], target)}
            expected = sae.in_units(sae.layer_sum(codes, target), kept[target])
            torch.testing.assert_close(seen.terms[row], expected.to(seen.terms), rtol=1e-4, atol=1e-5)


def test_a_site_that_there_is_once_has_no_layers_to_choose(clip: FrozenCLIP) -> None:
    with pytest.raises(UserError, match="the model has final once"):
        Amplifier(clip, autoencoder([0], "final"), [1])
