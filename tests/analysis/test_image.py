"""One image: the terms sum to the logit, and each is what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from clt_lightning.analysis import explain_image
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced

from .world import CLASSES, LAYERS, POSITIONS, TEMPLATES, Made, make_clt, numpy_codes, numpy_terms


@pytest.mark.parametrize(("topology", "skip"), [("cross_layer", False), ("cross_layer", True), ("sae", False)])
@pytest.mark.parametrize("wanted", [None, 3])
def test_terms_sum_to_the_logits(clip: FrozenCLIP, topology: str, skip: bool, wanted: int | None) -> None:
    clt, image = make_clt(topology, skip), Made().everything()[0][6]
    head = clip.zero_shot_head(CLASSES, TEMPLATES)
    found = explain_image(clip, clt, image, head, CLASSES, wanted)
    untouched = 100 * (clip.encode_image(image[None]) @ head)[0]
    with torch.no_grad(), replaced(clip, clt):
        cascade = 100 * (clip.encode_image(image[None]) @ head)[0]
    c = int(untouched.argmax()) if wanted is None else wanted
    assert (found.class_index, found.classname) == (c, CLASSES[c])
    assert found.original.logit == pytest.approx(float(untouched[c]), abs=1e-4)
    assert found.replaced.logit == pytest.approx(float(cascade[c]), abs=1e-4)
    for decomposition in (found.original, found.replaced):
        assert decomposition.sum == pytest.approx(decomposition.logit, abs=1e-4)
    assert (found.replaced.error == 0).all()
    assert found.original.error.abs().max() > 0.1
    assert bool(found.original.skip.any()) == skip
    json.dumps(found.to_json(), allow_nan=False)
    p = untouched.softmax(0)
    assert {round(s.p_original, 5) for s in found.classes} == {round(float(v), 5) for v in p}


def test_a_term_is_its_direct_effect(clip: FrozenCLIP) -> None:
    """With the LayerNorm's scale and the embedding's norm held, leaving a term out changes the logit by that term."""
    clt, image = make_clt(), Made().everything()[0][6]
    head = clip.zero_shot_head(CLASSES, TEMPLATES)
    found = explain_image(clip, clt, image, head, CLASSES, 2)
    acts = clip.capture(image[None])
    terms = numpy_terms(clt, numpy_codes(clt, acts.x.double().numpy()))[:, :, 0]
    visual = clip.model.visual
    last: list[torch.Tensor] = []
    handle = visual.ln_post.register_forward_pre_hook(lambda m, args: last.append(args[0]))
    clip.encode_image(image[None])
    handle.remove()
    r = (last[0][0, 0] if last[0].ndim == 3 else last[0][0]).double()
    scale = 1 / (r.var(correction=0) + visual.ln_post.eps).sqrt()
    embedding = ((r - r.mean()) * scale * visual.ln_post.weight + visual.ln_post.bias).double() @ visual.proj.double()

    def logit(residual: torch.Tensor) -> float:
        normed = (residual - residual.mean()) * scale * visual.ln_post.weight + visual.ln_post.bias
        return float(100 * (normed.double() @ visual.proj.double()) @ head[:, 2].double() / embedding.norm())

    assert logit(r) == pytest.approx(found.original.logit, abs=1e-4)
    for i in range(LAYERS):
        for j in range(i, LAYERS):
            without = logit(r - torch.from_numpy(terms[i, j]))
            assert float(found.original.features[i, j]) == pytest.approx(logit(r) - without, abs=1e-4)
    assert (found.original.features.numpy()[np.tril_indices(LAYERS, -1)] == 0).all()


def test_strongest_features_and_their_maps(clip: FrozenCLIP) -> None:
    clt, image = make_clt(), Made().everything()[0][3]
    found = explain_image(clip, clt, image, clip.zero_shot_head(CLASSES, TEMPLATES), CLASSES, n_features=6)
    codes = clt.encode(clip.capture(image[None]).x).dense().detach()
    for layer in range(LAYERS):
        best = codes[layer].max(0).values
        assert [f.feature for f in found.top_features[layer]] == best.argsort(descending=True)[:6].tolist()
        for feature in found.top_features[layer]:
            assert torch.equal(feature.map, codes[layer][:, feature.feature])
            assert len(feature.map) == POSITIONS
            assert feature.value == float(best[feature.feature]) == float(feature.map[feature.position])


def test_mistakes(clip: FrozenCLIP) -> None:
    clt, image = make_clt(), Made().everything()[0][3]
    head = clip.zero_shot_head(CLASSES, TEMPLATES)
    with pytest.raises(UserError, match=r"one image \(3, size, size\)"):
        explain_image(clip, clt, image[None], head, CLASSES)
    with pytest.raises(UserError, match="class_index 9"):
        explain_image(clip, clt, image, head, CLASSES, 9)
    with pytest.raises(UserError, match="5 columns for 1 class names"):
        explain_image(clip, clt, image, head, ["cat"])
