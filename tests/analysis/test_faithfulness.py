"""Taking terms away: the order on planted terms, and every point by an independent forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clt_lightning.analysis import Faithfulness, FaithfulnessOptions, FaithfulnessResult, observe
from clt_lightning.analysis.faithfulness import image_scores, keep_masks, random_orders
from clt_lightning.analysis.intervals import Interval
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import CrossLayerTranscoder

from .world import CLASSES, LAYERS, POSITIONS, TEMPLATES, WIDTH, Made, make_clt, numpy_codes, numpy_terms

LAST = LAYERS - 1


def run(
    clip: FrozenCLIP, clt: CrossLayerTranscoder, labels: torch.Tensor, head: torch.Tensor, batch: int, **options: object
) -> list[FaithfulnessResult]:
    images = Made().everything()[0]
    layer = options.get("layer", LAST)
    assert isinstance(layer, int)
    metric = Faithfulness(clip, clt, **({"layer": layer, "draws": 5} | options))  # type: ignore[arg-type]
    for start in range(0, len(images), batch):
        seen = observe(clip, images[start : start + batch], [layer])
        codes = clt.encode(seen.x)
        with torch.no_grad():
            metric.update(seen, codes, head, 100.0, labels[start : start + batch])
    return metric.results(metric.compute(), bootstrap=200)


@pytest.mark.parametrize("tokens", ["cls", "patch", "all"])
@pytest.mark.parametrize(("layer", "mean"), [(LAST, False), (LAST, True), (1, False), (1, True)])
def test_every_point_equals_a_forward_with_edited_terms(clip: FrozenCLIP, tokens: str, layer: int, mean: bool) -> None:
    clt = make_clt(skip=True)
    images, label_array, _ = Made().everything()
    labels = torch.from_numpy(label_array)
    head = clip.zero_shot_head(CLASSES, TEMPLATES)
    means = torch.randn(2, layer + 1, WIDTH, generator=torch.Generator().manual_seed(5)) if mean else None
    (found,) = run(clip, clt, labels, head, 7, layer=layer, tokens=tokens, means=means)
    assert (found.ranking, found.ablation, found.terms, found.n) == ("image", "mean" if mean else "zero", layer + 1, 21)

    acts = clip.capture(images)
    terms = numpy_terms(clt, numpy_codes(clt, acts.x.double().numpy()))[: layer + 1, layer]
    by_image = terms.reshape(layer + 1, len(images), POSITIONS, WIDTH)
    cut = {"all": slice(None), "cls": slice(0, 1), "patch": slice(1, None)}[tokens]
    kept = by_image[:, :, cut]
    y = kept.sum(0)
    scores = ((kept * y).sum(-1) / (y**2).sum(-1)).mean(-1).T
    order = np.argsort(-scores, 1, kind="stable")
    original = 100 * (clip.encode_image(images).double() @ head.double())
    for direction, curve in ((order, found.drop_top), (order[:, ::-1], found.drop_bottom)):
        for n in range(layer + 2):
            mask = np.ones_like(scores)
            np.put_along_axis(mask, direction[:, :n], 0, 1)

            def edit(target: int, values: torch.Tensor, mask=mask) -> torch.Tensor:  # type: ignore[no-untyped-def]
                shaped = values.view(layer + 1, len(images), -1, WIDTH)
                m = torch.from_numpy(mask.T.copy()).float()[:, :, None, None]
                if means is None:
                    return (shaped * m).flatten(1, 2)
                kinds = means[:, :, None].expand(-1, -1, len(images), -1)
                filler = torch.stack([kinds[int(p > 0)] for p in range(POSITIONS)[cut]], 2)
                return (shaped * m + (1 - m) * filler).flatten(1, 2)

            with torch.no_grad(), replaced(clip, clt, [layer], tokens, edit=edit):
                logits = 100 * (clip.encode_image(images).double() @ head.double())
            right = ((logits.argmax(1) == labels) & (labels >= 0)).sum() / (labels >= 0).sum()
            kl = (original.softmax(1) * (original.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
            assert curve[0][n].value == pytest.approx(float(right))
            assert curve[1][n] == pytest.approx(float(kl), rel=2e-3, abs=1e-4)
    assert found.drop_top[1][0] == pytest.approx(found.drop_random[1][0])
    assert found.drop_top[1][-1] == pytest.approx(found.drop_bottom[1][-1])


def test_planted_order(clip: FrozenCLIP) -> None:
    """Source 0 writes nearly all of the last layer: it must score highest, and taking it away must cost most."""
    clt = make_clt()
    with torch.no_grad():
        for i in range(LAYERS):
            clt.W_dec[i][:, LAST - i] *= (8.0, 0.05, 0.4)[i]
            # in directions of its own: the scores are the shares of the squared length
            clt.W_dec[i][:, LAST - i, torch.arange(WIDTH) % LAYERS != i] = 0
        clt.b_dec[LAST] = 0
    images = Made().everything()[0]
    head = torch.nn.functional.normalize(torch.randn(16, 40, generator=torch.Generator().manual_seed(0)), dim=0)
    with torch.no_grad(), replaced(clip, clt, [LAST], "cls"):
        labels = (clip.encode_image(images) @ head).argmax(1)  # what the full reconstruction says
    found = run(clip, clt, labels, head, 26, dataset_scores=torch.tensor([0.9, 0.01, 0.09]))
    assert [result.ranking for result in found] == ["image", "dataset"]
    for result in found:
        top, bottom, control = (c[0] for c in (result.drop_top, result.drop_bottom, result.drop_random))
        assert top[0].value == bottom[0].value == control[0].value == 1
        assert bottom[1].value > 0.9
        assert top[1].value < 0.5
        assert top[1].value <= control[1].value <= bottom[1].value
        assert control[1].low < control[1].high
        auc = result.auc()
        assert auc["deletion"] < auc["random"] < auc["insertion"]
        assert set(result.to_json()) >= {"drop_top", "drop_bottom", "drop_random", "auc", "baseline", "original"}
    seen = observe(clip, images)
    terms = clt.layer_terms([clt.encode(seen.x).slice(i) for i in range(LAYERS)], LAST).unflatten(1, (26, -1))
    assert (image_scores(terms.detach()[:, :, :1]).mean(0).argsort(descending=True) == torch.tensor([0, 2, 1])).all()


def test_areas_are_those_under_the_curves() -> None:
    """Top-1 against the share of terms left out (deletion, random) or put in (insertion), by the trapezoidal rule."""
    rng = np.random.default_rng(4)
    curves = rng.random((3, 6))

    def points(values: np.ndarray) -> tuple[list[Interval], list[float]]:
        return [Interval(float(v), 0.0, 1.0) for v in values], [0.0] * len(values)

    made = [points(curve) for curve in curves]
    result = FaithfulnessResult(2, "cls", "image", "zero", 10, Interval(1, 1, 1), made[0], made[1], made[2], 3)
    trapezoids = ((curves[:, 1:] + curves[:, :-1]) / 2).mean(1)  # of width 1 / 5 each
    assert result.terms == 5
    assert result.auc() == pytest.approx(dict(zip(("deletion", "insertion", "random"), trapezoids)))
    flat = points(np.full(6, 0.75))
    level = FaithfulnessResult(2, "cls", "image", "zero", 10, Interval(1, 1, 1), flat, flat, flat, 3).auc()
    assert level == pytest.approx({"deletion": 0.75, "insertion": 0.75, "random": 0.75})
    assert result.to_json()["auc"] == pytest.approx(result.auc())


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 100))
def test_masks_take_away_in_order(terms: int, draws: int, seed: int) -> None:
    orders = random_orders(terms, draws, seed)
    assert torch.equal(orders.sort(1).values, torch.arange(terms).expand(draws, -1))
    masks = keep_masks(orders)
    for n in range(terms + 1):
        for draw in range(draws):
            gone = set(orders[draw, :n].tolist())
            assert [bool(v) for v in masks[n, draw]] == [i not in gone for i in range(terms)]


def test_batches_leave_no_trace(clip: FrozenCLIP, clt: CrossLayerTranscoder) -> None:
    labels = torch.from_numpy(Made().everything()[1])
    head = clip.zero_shot_head(CLASSES, TEMPLATES)
    one, many = (run(clip, clt, labels, head, batch)[0] for batch in (26, 5))
    for curve in ("drop_top", "drop_bottom", "drop_random"):
        assert getattr(one, curve)[0] == getattr(many, curve)[0]
        assert getattr(one, curve)[1] == pytest.approx(getattr(many, curve)[1], rel=1e-4)


def test_many_points_at_once_are_those_of_one_after_the_other(
    clip: FrozenCLIP, clt: CrossLayerTranscoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of the terms and of the stream, of one row and of one image, give what a single block gives."""
    labels = torch.from_numpy(Made().everything()[1])
    head = clip.zero_shot_head(CLASSES, TEMPLATES)
    options = {"layer": 1, "tokens": "all", "dataset_scores": torch.tensor([0.2, 0.8])}
    whole = run(clip, clt, labels, head, 9, **options)
    for block in (1, 3 * 9 * POSITIONS * WIDTH * (1 + 1) * 2):
        monkeypatch.setattr("clt_lightning.analysis.faithfulness._BLOCK", block)
        for one, other in zip(whole, run(clip, clt, labels, head, 9, **options), strict=True):
            for curve in ("drop_top", "drop_bottom", "drop_random"):
                assert getattr(one, curve)[0] == getattr(other, curve)[0]
                assert getattr(one, curve)[1] == pytest.approx(getattr(other, curve)[1], rel=1e-4)


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"faithfulness\.token_sets"):
        FaithfulnessOptions(token_sets=["patches"])
    with pytest.raises(UserError, match=r"faithfulness\.rankings"):
        FaithfulnessOptions(rankings=["class"])
    with pytest.raises(UserError, match=r"faithfulness\.draws"):
        FaithfulnessOptions(draws=0)
