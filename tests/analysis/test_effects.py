"""Effects of features: gradients against autograd by hand, integration against real ablation, direct ones by NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clt_lightning.analysis.effects import (
    EffectCollector,
    ImageSample,
    ablation_effects,
    check_effects,
    image_directions,
    integrated_effects,
    total_effects,
)
from clt_lightning.analysis.effects.check import agreement
from clt_lightning.analysis.effects.direct import direct_effects, read_out, read_out_scale
from clt_lightning.analysis.probes import Probe
from clt_lightning.analysis.target import Target
from clt_lightning.analysis.tower import Observation, observe
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import Codes, CrossLayerTranscoder
from tests.analysis import world


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> FrozenCLIP:
    world.register(tmp_path_factory.mktemp("models"))
    return world.make_clip()


@pytest.fixture(scope="module")
def head(clip: FrozenCLIP) -> Tensor:
    return clip.zero_shot_head(world.CLASSES, world.TEMPLATES)


def look(clip: FrozenCLIP, clt: CrossLayerTranscoder, n: int = 6) -> tuple[Observation, Codes]:
    seen = observe(clip, world.Made(n=n).everything()[0])
    return seen, clt.encode(seen.y if clt.topology == "sae" else seen.x)


def without(clip: FrozenCLIP, clt: CrossLayerTranscoder, images: Tensor, codes: Tensor, layer: int, f: int) -> Tensor:
    """Embeddings with one feature's writing taken out of every later MLP output, in plain code."""

    def branch(j: int, x: Tensor, compute_y: object) -> Tensor:
        y: Tensor = compute_y()  # type: ignore[operator]
        if clt.writes(layer, j):
            y = y - codes[layer, :, f].view(len(images), -1, 1) * clt.W_dec[layer][f, j - layer] * clt.y_scale[j]
        return y

    with torch.no_grad(), clip.mlp_override(branch):
        return clip.encode_image(images)


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer", "sae"])
@pytest.mark.parametrize("skip", [False, True])
def test_ablation_is_what_taking_a_feature_out_does(clip: FrozenCLIP, head: Tensor, topology: str, skip: bool) -> None:
    if skip and topology == "sae":
        return
    clt = world.make_clt(topology, skip)
    seen, codes = look(clip, clt)
    images = world.Made(n=6).everything()[0]
    directions = image_directions(head, seen.embeddings)[0]
    dense = codes.dense().detach()
    for layer in range(world.LAYERS):
        feature = int(dense[layer].abs().sum(0).argmax())
        z = dense[layer, :, feature].view(6, -1)
        which = torch.full((6,), feature)
        real = ablation_effects(clip, clt, layer, which, z, seen, torch.arange(6), directions)
        gone = without(clip, clt, images, dense, layer, feature)
        expected = 100 * ((seen.embeddings - gone) * directions).sum(-1)
        assert real.abs().max() > 0.01
        torch.testing.assert_close(real, expected, rtol=1e-3, atol=1e-3)
        # rows in another order and twice, as pairs of a feature and an image come
        order = torch.tensor([4, 0, 0, 5])
        some = ablation_effects(clip, clt, layer, which[order], z[order], seen, order, directions[:, order])
        torch.testing.assert_close(some, real[:, order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("measured", [ablation_effects, integrated_effects])
def test_of_no_features_there_are_no_effects(clip: FrozenCLIP, head: Tensor, measured: Any) -> None:
    clt = world.make_clt()
    seen, _ = look(clip, clt)
    none = torch.zeros(0, dtype=torch.int64)
    directions = image_directions(head, seen.embeddings)[0][:, :0]
    found = measured(clip, clt, 1, none, torch.zeros(0, world.POSITIONS), seen, none, directions)
    assert found.shape == (len(directions), 0)


def test_many_nodes_give_the_ablation(clip: FrozenCLIP, head: Tensor) -> None:
    clt = world.make_clt()
    seen, codes = look(clip, clt)
    directions = image_directions(head, seen.embeddings)[0]
    dense = codes.dense().detach()
    z = dense[0, :, 3].view(6, -1) + 0.3
    arguments = (clip, clt, 0, torch.full((6,), 3), z, seen, torch.arange(6), directions)
    real = ablation_effects(*arguments)
    few, many = (integrated_effects(*arguments, nodes=n) for n in (1, 16))
    assert (many - real).abs().max() < 0.02 * real.abs().max()
    assert (many - real).abs().max() < (few - real).abs().max()


@pytest.mark.parametrize("topology", ["cross_layer", "per_layer"])
def test_one_gradient_is_the_limit_of_small_ablations(clip: FrozenCLIP, head: Tensor, topology: str) -> None:
    clt = world.make_clt(topology)
    seen, codes = look(clip, clt)
    directions = image_directions(head, seen.embeddings)[0]
    effects = total_effects(clip, clt, seen, codes, directions)
    dense = codes.dense().detach()
    for layer, found in enumerate(effects):
        pairs, values = codes.layer(layer)
        assert found.shape == (2, len(values))
        feature = int(dense[layer].abs().sum(0).argmax())
        predicted = torch.zeros(2, codes.n_tokens)
        predicted[:, pairs.tokens[pairs.features == feature]] = found[:, pairs.features == feature]
        z = dense[layer, :, feature].view(6, -1)
        small = 1e-2
        # symmetric: half of it taken away, half of it put on top
        which = torch.full((6,), feature)
        rest = (clip, clt, layer, which)
        down = ablation_effects(*rest, small * z, seen, torch.arange(6), directions)
        up = ablation_effects(*rest, -small * z, seen, torch.arange(6), directions)
        slope = (down - up) / (2 * small)
        torch.testing.assert_close(predicted.view(2, 6, -1).sum(-1), slope, rtol=2e-2, atol=2e-2)


def test_effects_add_up_over_batches_and_classes(clip: FrozenCLIP, head: Tensor) -> None:
    clt = world.make_clt()
    images = world.Made(n=12).everything()[0]

    def collect(*parts: Tensor) -> EffectCollector:
        collector = EffectCollector(clip, clt, head)
        for part in parts:
            seen = observe(clip, part)
            collector.update(seen, clt.encode(seen.x))
        return collector

    one, three = collect(images).result(), collect(images[:5], images[5:6], images[6:]).result()
    for name in one.arrays:
        np.testing.assert_allclose(one[name], three[name], rtol=1e-4, atol=1e-5, err_msg=name)
    # a sum over images is the sum over classes, and the mean times the count
    np.testing.assert_allclose(one["by_class"].sum(-1), one["class_sum"], rtol=1e-4, atol=1e-4)
    active = one["images"] > 0
    np.testing.assert_allclose((one["margin_mean"] * one["images"])[active], one["margin_sum"][active], rtol=1e-4)
    assert one["predicted"].sum() == 12
    assert np.isnan(one["class_mean"][~active]).all()
    # by hand, from each image's own effects
    seen = observe(clip, images)
    codes = clt.encode(seen.x)
    directions, predicted = image_directions(head, seen.embeddings)
    effects = total_effects(clip, clt, seen, codes, directions)
    expected = np.zeros((world.FEATURES, len(world.CLASSES)))
    pairs, _ = codes.layer(1)
    for pair, (token, feature) in enumerate(zip(pairs.tokens.tolist(), pairs.features.tolist())):
        expected[feature, int(predicted[token // world.POSITIONS])] += float(effects[1][0, pair])
    np.testing.assert_allclose(one["by_class"][1], expected, rtol=1e-4, atol=1e-4)


def test_direct_effects_are_the_read_out_of_the_rows(clip: FrozenCLIP, head: Tensor) -> None:
    clt = world.make_clt()
    seen, _ = look(clip, clt, 5)
    directions = read_out(clip, head)
    scales, factor = read_out_scale(clip, seen)
    # the directions read the logit off the residual, up to the LayerNorm's bias
    visual = clip.model.visual
    L = clip.n_layers
    residual = (
        seen.streams[0][:, 0] + torch.stack(seen.attention[:L]).sum(0) + seen.y.unflatten(1, (5, -1))[:, :, 0].sum(0)
    )
    embedding = visual.ln_post(residual) @ visual.proj
    bias = visual.ln_post.bias @ visual.proj @ head
    logits = 100 * torch.nn.functional.normalize(embedding, dim=1) @ head
    read = residual.double() @ directions.T * scales[:, None] + bias * factor[:, None]
    torch.testing.assert_close(read.float(), logits, rtol=1e-3, atol=1e-3)
    # of a feature's rows: the sum over targets, centred over classes
    total, spread = direct_effects(clt, 1, directions * 2.0)
    rows = sum(clt.W_dec[1][7, t].double() * clt.y_scale[1 + t].double() for t in range(2))
    expected = 2.0 * (directions @ rows)
    np.testing.assert_allclose(total[7].detach().numpy(), (expected - expected.mean()).detach().numpy(), atol=1e-4)
    assert float(total.sum(1).abs().max()) < 1e-3
    assert not bool(spread[:, 0].any())
    own = clt.W_dec[1][7, 1].double() * clt.y_scale[2].double() @ (2.0 * directions).T
    assert float(spread[7, 2]) == pytest.approx(float(own.std(correction=0)), rel=1e-4)


def test_the_ends_of_a_features_direct_effect(clip: FrozenCLIP, head: Tensor) -> None:
    clt = world.make_clt()
    collector = EffectCollector(clip, clt, head)
    seen, codes = look(clip, clt)
    collector.update(seen, codes)
    found = collector.result()
    n = len(world.CLASSES)
    scale = float(read_out_scale(clip, seen)[0].mean())
    full, _ = direct_effects(clt, 0, read_out(clip, head) * scale)
    order = full.argsort(dim=1, descending=True)
    np.testing.assert_array_equal(found["direct_class"][0, :, :n], order.numpy())
    np.testing.assert_array_equal(found["direct_class"][0, :, n:], order.flip(1).numpy())
    np.testing.assert_allclose(found["direct"][0, :, 0], full.amax(1).detach().numpy(), rtol=1e-5)


def test_the_check_on_made_numbers() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=4000)
    real = 2 * predicted + rng.normal(size=4000)
    image = np.arange(4000) % 50
    found = agreement(predicted, real, image, 500, 0)
    assert found.correlation.value == pytest.approx(np.corrcoef(predicted, real)[0, 1])
    assert found.correlation.low < 2 / 5**0.5 < found.correlation.high
    assert found.correlation.high - found.correlation.low < 0.03
    assert found.slope == pytest.approx(2, abs=0.06)
    assert found.signs == pytest.approx((np.sign(predicted) == np.sign(real)).mean(), abs=1e-3)
    assert agreement(predicted, -real, image, 10, 0).correlation.value == pytest.approx(-found.correlation.value)


def test_the_check_compares_prediction_and_ablation(clip: FrozenCLIP, head: Tensor) -> None:
    clt = world.make_clt(size=0.05)  # small writes: the model is nearly linear in them
    images = world.Made(n=12).everything()[0]
    seen = observe(clip, images)
    collector = EffectCollector(clip, clt, head)
    collector.update(seen, clt.encode(seen.x))
    strength = collector.result()["margin_strength"]
    found = check_effects(clip, clt, head, images, strength, features=30, pairs=150, integrated=40, draws=50)
    assert found is not None
    pairs = found.pairs
    assert len(pairs["layer"]) == 150
    assert np.isfinite(pairs["margin_real"]).all()
    assert np.isfinite(pairs["margin_integrated"]).sum() == 40
    chosen = {(int(layer), int(f)): int(c) for layer, f, c in zip(pairs["layer"], pairs["feature"], pairs["chosen"])}
    assert 20 <= len(chosen) <= 30
    strongest = [strength[key] for key, kind in chosen.items() if kind == 0]
    drawn = [strength[key] for key, kind in chosen.items() if kind == 1]
    assert min(strongest) >= max(drawn)
    both = found.agreements["margin"]
    assert both["gradient"]["all"].correlation.value > 0.95
    assert both["integrated"]["all"].correlation.value > 0.999
    assert both["integrated"]["all"].slope == pytest.approx(1, abs=0.02)
    assert both["gradient"]["all"].n == 150


def test_the_sample_of_images_does_not_depend_on_the_order() -> None:
    keys = [f"shard/{i:03d}" for i in range(40)]
    images = torch.arange(40.0)[:, None, None, None].expand(40, 3, 2, 2)
    forwards, backwards = ImageSample(7), ImageSample(7)
    for start in range(0, 40, 8):
        forwards.add(keys[start : start + 8], images[start : start + 8])
    backwards.add(keys[::-1], images.flip(0))
    a, b = forwards.gathered(), backwards.gathered()
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a, b)
    assert ImageSample(7).gathered() is None


def test_targets(clip: FrozenCLIP, head: Tensor, tmp_path: Path) -> None:
    embeddings = clip.encode_image(world.Made(n=3).everything()[0])
    logits = 100 * embeddings @ head
    cat = Target.of_class(head, world.CLASSES, "cat")
    torch.testing.assert_close(cat.value(embeddings), logits[:, 0])
    between = Target.parse(head, world.CLASSES, "red car - dog")
    assert between.name == "red car - dog"
    torch.testing.assert_close(between.value(embeddings), logits[:, 2] - logits[:, 1], atol=1e-3, rtol=1e-3)
    centred = Target.centred(head, world.CLASSES, 3)
    torch.testing.assert_close(centred.value(embeddings), logits[:, 3] - logits.mean(1), atol=1e-3, rtol=1e-3)
    again = Target.from_json(between.to_json())
    torch.testing.assert_close(again.value(embeddings), between.value(embeddings))
    # words of several classes: the mean of their logits; a class's own name comes first
    shapes = ["red square", "blue square", "square", "red circle", "squares"]
    squares = Target.parse(head, shapes, "red - Square")
    torch.testing.assert_close(
        squares.value(embeddings), logits[:, [0, 3]].mean(1) - logits[:, [0, 1, 2]].mean(1), atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(Target.parse(head, shapes, "square").value(embeddings), logits[:, 2])
    for text in ("dgo", "cat - ", " - dog", "ca"):
        with pytest.raises(UserError, match="no class"):
            Target.parse(head, world.CLASSES, text)
    with pytest.raises(UserError, match=r"no class 'dgo'.*dog"):
        Target.parse(head, world.CLASSES, "cat - dgo")
    with pytest.raises(UserError, match="no target"):
        Target.from_json({"name": "x"})


def test_targets_of_captions_and_probes(clip: FrozenCLIP, head: Tensor) -> None:
    embeddings = clip.encode_image(world.Made(n=3).everything()[0])
    texts = ["a cat - asleep, at night", "cat"]
    by_text = 100 * embeddings @ clip.encode_text(texts).T
    alone = Target.parse(head, world.CLASSES, f'"{texts[0]}"', backbone=clip)
    assert alone.name == f'"{texts[0]}"'
    torch.testing.assert_close(alone.value(embeddings), by_text[:, 0])
    for text, expected in (
        (f'"{texts[0]}" - dog', by_text[:, 0] - 100 * embeddings @ head[:, 1]),
        (f'dog - "{texts[0]}"', 100 * embeddings @ head[:, 1] - by_text[:, 0]),
        (f'"{texts[0]}" - "{texts[1]}"', by_text[:, 0] - by_text[:, 1]),
        (f'"{texts[1]}" - mean of classes', by_text[:, 1] - 100 * (embeddings @ head).mean(1)),
    ):
        found = Target.parse(head, world.CLASSES, text, backbone=clip)
        assert found.name == text
        torch.testing.assert_close(found.value(embeddings), expected, atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="no class"):
        Target.parse(head, world.CLASSES, '"cat"')  # nothing embeds it
    with pytest.raises(UserError, match="between two double quotes"):
        Target.parse(head, world.CLASSES, 'dog - "a cat', backbone=clip)
    with pytest.raises(UserError, match="this one is empty"):
        Target.of_caption(clip, " ")
    probe = Probe(torch.randn(embeddings.shape[1], 3), torch.randn(3), 0.1)
    outputs = probe(embeddings)
    read = Target.of_probe(probe, 2, "a beak")
    torch.testing.assert_close(read.value(embeddings), outputs[:, 2] - probe.bias[2])
    between = Target.of_probe(probe, 2, "a beak", less=0).value(embeddings)
    torch.testing.assert_close(between, outputs[:, 2] - outputs[:, 0] - probe.bias[2] + probe.bias[0])
    with pytest.raises(UserError, match=r"output 3 is outside 0\.\.2"):
        Target.of_probe(probe, 0, "none", less=3)
    with pytest.raises(UserError, match="some columns alone"):
        Target.of_probe(Probe(probe.weight[:1], probe.bias, 0.1, torch.tensor([4])), 0, "one column")
