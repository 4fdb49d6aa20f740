"""Features: every number by hand from dense codes; patch maps are encode's; merging changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clt_lightning.analysis import FeatureCollector, FeatureOptions, Features, Retrieval, RetrievalCollector
from clt_lightning.analysis import load_features as load
from clt_lightning.analysis.collector import LayerCollector, key_seeds
from clt_lightning.analysis.features import monosemanticity
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import AbsTopK, Codes, CrossLayerTranscoder

from .world import CLASSES, FEATURES, LAYERS, POSITIONS, TEMPLATES, WIDTH, K, Made, make_clt, randomise

N = 23


def collect(clip: FrozenCLIP, clt: CrossLayerTranscoder, batch: int, order: list[int] | None = None) -> Features:
    data = Made(n=N)
    images, labels, keys = data.everything()
    order = order or list(range(N))
    images, labels, keys = images[order], labels[order], [keys[i] for i in order]
    collector = FeatureCollector(clip, clt, CLASSES, FeatureOptions(k=5, samples=3))
    for start in range(0, len(order), batch):
        part = slice(start, start + batch)
        acts = clip.capture(images[part], embeddings=True)
        assert acts.embeddings is not None
        collector.update(clt.encode(acts.x), acts.embeddings, keys[part], torch.from_numpy(labels[part]))
    found = collector.result("test", clip.zero_shot_head(CLASSES, TEMPLATES))
    assert found is not None
    return found


def absolute() -> CrossLayerTranscoder:
    return randomise(CrossLayerTranscoder(LAYERS, WIDTH, FEATURES, AbsTopK(K), seed=2))


@pytest.mark.parametrize("make", [make_clt, absolute])
def test_equals_dense_codes_by_hand(clip: FrozenCLIP, make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    clt = make()
    collect(clip, clt, 6).save(tmp_path)
    found = load(tmp_path)
    data = Made(n=N)
    images, labels, keys = data.everything()
    acts = clip.capture(images, embeddings=True)
    assert acts.embeddings is not None
    e = acts.embeddings.double().numpy()
    codes = clt.encode(acts.x).dense().detach().numpy().reshape(LAYERS, N, POSITIONS, FEATURES)
    assert found.keys == keys
    assert found.labels.tolist() == labels.tolist()
    a = np.abs(codes).max(2).astype(np.float64)  # (L, n, F)
    stats = found.stats
    assert np.allclose(stats["frequency"], (codes != 0).mean((1, 2)))
    assert np.allclose(stats["image_frequency"], (a > 0).mean(1))
    assert np.allclose(stats["cls_frequency"], (codes[:, :, 0] != 0).mean(1))
    active = (codes != 0).sum((1, 2))
    assert np.allclose(stats["mean_code"], codes.sum((1, 2)) / np.maximum(active, 1), atol=1e-6)
    flat = codes.reshape(LAYERS, -1, FEATURES)
    extreme = np.take_along_axis(flat, np.abs(flat).argmax(1)[:, None], 1)[:, 0]
    assert np.array_equal(stats["max_code"], extreme)
    ms, entropy = np.full((2, LAYERS, FEATURES), np.nan)
    for layer in range(LAYERS):
        for f in range(FEATURES):
            weights = a[layer, :, f]
            if (weights > 0).sum() >= 2:
                pairs = np.outer(weights, weights)
                np.fill_diagonal(pairs, 0)
                ms[layer, f] = (pairs * (e @ e.T)).sum() / pairs.sum()
            by_class = np.array([weights[labels == c].sum() for c in range(5)])
            if by_class.sum() > 0:
                p = by_class / by_class.sum()
                entropy[layer, f] = -(p[p > 0] * np.log(p[p > 0])).sum()
                assert np.allclose(stats["class_share"][layer, f], np.sort(p)[::-1], atol=1e-6)
                first = stats["class_index"][layer, f, 0]
                assert p[first] == pytest.approx(p.max())
    assert np.allclose(stats["monosemanticity"], ms, atol=1e-4, equal_nan=True)
    assert np.allclose(stats["label_entropy"], entropy, atol=1e-5, equal_nan=True)
    for layer in range(LAYERS):
        arrays = found.layers[layer]
        for f in range(FEATURES):
            order = np.argsort(-a[layer, :, f], kind="stable")
            want = [i for i in order[:5] if a[layer, i, f] > 0]
            got = [i for i in arrays["top_image"][f] if i >= 0]
            assert got == want
            for name, rows in (("top", got), ("sample", [i for i in arrays["sample_image"][f] if i >= 0])):
                for place, image in enumerate(rows):
                    # bit by bit what encode says
                    assert np.array_equal(arrays[f"{name}_map"][f, place], codes[layer, image, :, f])
                    value = arrays[f"{name}_value"][f, place]
                    assert abs(value) == np.float32(a[layer, image, f])
                    assert value in codes[layer, image, :, f]
            assert len([i for i in arrays["sample_image"][f] if i >= 0]) == min(3, int((a[layer, :, f] > 0).sum()))
            values = np.abs(arrays["sample_value"][f])
            assert (np.diff(values) <= 0).all()
    norms = np.zeros((LAYERS, FEATURES, LAYERS))
    for i in range(LAYERS):
        for t in range(LAYERS - i):
            norms[i, :, i + t] = np.linalg.norm(clt.W_dec[i][:, t].detach().numpy(), axis=1) * float(clt.y_scale[i + t])
    assert np.allclose(stats["decoder_norm"], norms, atol=1e-6)
    head = clip.zero_shot_head(CLASSES, TEMPLATES).T.double().numpy()
    centred = head - head.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    for layer in range(LAYERS):
        for f in np.flatnonzero(a[layer].sum(0) > 0).tolist():
            direction = (a[layer, :, f] @ e) / a[layer, :, f].sum() - e.mean(0)
            cosines = centred @ (direction / np.linalg.norm(direction))
            assert np.allclose(stats["nearest_class_score"][layer, f], np.sort(cosines)[::-1], atol=1e-4)


@pytest.mark.parametrize("n_classes", [1, 3, 7])
def test_shares_of_few_and_of_many_classes(clip: FrozenCLIP, clt: CrossLayerTranscoder, n_classes: int) -> None:
    """The five largest shares of each feature's activation, largest first; -1 and 0 where there are no more."""
    images, _, keys = Made(n=N).everything()
    labels = np.array([-1 if i % 4 == 3 else i % n_classes for i in range(N)])
    collector = FeatureCollector(clip, clt, [f"c{i}" for i in range(n_classes)], FeatureOptions(k=1, samples=0))
    acts = clip.capture(images, embeddings=True)
    assert acts.embeddings is not None
    collector.update(clt.encode(acts.x), acts.embeddings, keys, torch.from_numpy(labels))
    found = collector.result("test")
    assert found is not None
    codes = clt.encode(acts.x).dense().detach().double().numpy().reshape(LAYERS, N, POSITIONS, FEATURES)
    strengths = np.abs(codes).max(2)
    by_class = np.stack([strengths[:, labels == c].sum(1) for c in range(n_classes)], 2)
    with np.errstate(invalid="ignore"):
        shares = np.nan_to_num(by_class / by_class.sum(2, keepdims=True))
    wanted = np.zeros((LAYERS, FEATURES, 5))
    best = np.sort(shares, 2)[:, :, ::-1][:, :, :5]
    wanted[:, :, : best.shape[2]] = best
    assert np.allclose(found.stats["class_share"], wanted, atol=1e-6)
    index = found.stats["class_index"]
    assert ((index >= 0) == (wanted > 0)).all()
    for layer, f, place in zip(*np.nonzero(index >= 0)):
        assert shares[layer, f, index[layer, f, place]] == pytest.approx(wanted[layer, f, place], abs=1e-6)
    assert found.layers[0]["sample_image"].shape == (FEATURES, 0)


def test_saving_again_replaces_what_was_there(clip: FrozenCLIP, clt: CrossLayerTranscoder, tmp_path: Path) -> None:
    """In a folder that need not be there."""
    run = tmp_path / "runs" / "one"
    images, labels, keys = Made(n=N).everything()
    codes = clt.encode(clip.capture(images).x)
    for features, n in ((collect(clip, clt, 6), 5), (collect(clip, clt, 6, order=list(range(9))), 9)):
        features.save(run)
        assert load(run).keys == features.keys
        collector = RetrievalCollector(FEATURES, m=4)
        first = torch.arange(N).repeat_interleave(POSITIONS) < n
        collector.update(codes.select_tokens(first), keys[:n], torch.from_numpy(labels[:n]))
        collector.result().save(run)
        assert Retrieval.load(run).keys == keys[:n]


def test_batches_and_order_leave_no_trace(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    one = collect(clip, clt, N)
    other = collect(clip, clt, 5, order=list(np.random.default_rng(0).permutation(N)))
    for name, values in one.stats.items():
        assert np.allclose(values, other.stats[name], atol=1e-5, equal_nan=True), name
    for mine, theirs in zip(one.layers, other.layers):
        for name in mine:
            assert np.allclose(mine[name], theirs[name], atol=1e-5), name


def test_merging_two_halves_equals_the_whole(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    images, labels, keys = Made(n=N).everything()
    acts = clip.capture(images, embeddings=True)
    assert acts.embeddings is not None
    codes, seeds = clt.encode(acts.x), key_seeds(keys)

    def collector(part: slice) -> LayerCollector:
        made = LayerCollector(FEATURES, POSITIONS, 16, 5, k=4, samples=3)
        keep = torch.zeros(N, dtype=torch.bool)
        keep[part] = True
        own = codes.select_tokens(keep.repeat_interleave(POSITIONS)).layer(1)
        assert acts.embeddings is not None
        made.update(*own, acts.embeddings[part], torch.from_numpy(labels[part]), seeds[part], 0)
        return made

    whole, first, second = collector(slice(None)), collector(slice(0, 9)), collector(slice(9, None))
    second.shift_images(9)
    first.merge(second)
    for name, total in whole.sums.items():
        assert torch.allclose(first.sums[name], total), name
    assert torch.equal(first.max_code, whole.max_code)
    for best, want in ((first.top, whole.top), (first.sample, whole.sample)):
        for name in ("score", "value", "image", "map"):
            assert torch.equal(getattr(best, name), getattr(want, name)), name


def test_the_sample_is_uniform() -> None:
    """Every active image is as likely as any other, whatever its code."""
    from clt_lightning.transcoder import Codes

    n, features = 40, 3000
    values = torch.arange(1.0, n + 1)[:, None].expand(n, features).clone()
    values[:10] = 0
    made = LayerCollector(features, 1, 4, 0, k=2, samples=6)
    pairs, codes = Codes.from_dense(values[None]).layer(0)
    made.update(pairs, codes, torch.ones(n, 4) / 2, torch.full((n,), -1), key_seeds([str(i) for i in range(n)]), 0)
    counts = torch.bincount(made.sample.image.flatten(), minlength=n)
    assert (counts[:10] == 0).all()
    expected = features * 6 / 30
    assert (counts[10:] - expected).abs().max() < 5 * expected**0.5


def test_planted_monosemanticity() -> None:
    e = torch.eye(3, dtype=torch.float64)
    same = torch.tensor([[2.0, 3.0, 0.0]], dtype=torch.float64)
    for embeddings, want in ((e[[0, 0, 1]], 1.0), (e[[0, 1, 2]], 0.0)):
        found = monosemanticity(same @ embeddings, same.sum(1), same.square().sum(1), torch.tensor([2]))
        assert float(found) == pytest.approx(want)
    assert monosemanticity(same @ e, same.sum(1), same.square().sum(1), torch.tensor([1])).isnan().all()


def test_neighbours_by_sparse_code(clip: FrozenCLIP, clt: CrossLayerTranscoder, tmp_path: Path) -> None:
    images, labels, keys = Made(n=N).everything()
    collector = RetrievalCollector(FEATURES, m=FEATURES)
    for start in range(0, N, 7):
        part = slice(start, start + 7)
        collector.update(clt.encode(clip.capture(images[part]).x), keys[part], torch.from_numpy(labels[part]))
    collector.result().save(tmp_path)
    index = Retrieval.load(tmp_path)
    codes = clt.encode(clip.capture(images).x)
    dense = codes.dense().detach().double().numpy().reshape(LAYERS, N, POSITIONS, FEATURES).mean(2)
    dense /= np.linalg.norm(dense, axis=2, keepdims=True)
    assert index.keys == keys
    for layer in range(LAYERS):
        cosines = dense[layer] @ dense[layer, 4]
        found, scores = index.nearest(4, layer, k=6)
        want = [i for i in np.argsort(-cosines, kind="stable") if i != 4][:6]
        assert found.tolist() == want
        assert np.allclose(scores, cosines[want], atol=1e-5)
    one = index.nearest_to(clt.encode(clip.capture(images[4:5]).x), k=1)
    assert [int(found[0]) for found, _ in one] == [4] * LAYERS
    assert one[0][1][0] == pytest.approx(1, abs=1e-5)


def test_an_image_without_codes_has_no_neighbours(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    """And is nobody's: its cosine is 0, not NaN."""
    images, labels, keys = Made(n=6).everything()
    dense = clt.encode(clip.capture(images).x).dense().detach()
    dense[:, 2 * POSITIONS : 3 * POSITIONS] = 0
    collector = RetrievalCollector(FEATURES, m=5)
    collector.update(Codes.from_dense(dense), keys, torch.from_numpy(labels))
    index = collector.result()
    assert np.isfinite(index.values).all()
    for layer in range(LAYERS):
        assert (index.nearest(2, layer, k=5)[1] == 0).all()
        order, cosines = index.nearest(0, layer, k=5)
        assert sorted(order) == [1, 2, 3, 4, 5]  # all but itself, however many are asked for
        assert cosines[list(order).index(2)] == 0


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features holds no features: run `python -m clt_lightning test --run"):
        load(tmp_path)
    with pytest.raises(UserError, match="retrieval holds no codes"):
        Retrieval.load(tmp_path)
    wrong: list[dict[str, Any]] = [{"k": 0}, {"samples": -1}]
    for options in wrong:
        with pytest.raises(UserError, match=r"features\.k"):
            FeatureOptions(**options)
    with pytest.raises(UserError, match=r"features\.device"):
        FeatureOptions(device="cuda")
