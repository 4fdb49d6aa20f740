"""Baselines over images, and the forward with units set to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import clt_lightning as cl
from clt_lightning.analysis.circuits.faithful import (
    Baseline,
    Dimensions,
    Features,
    baseline_of,
    masked_embeddings,
    observe_units,
)
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import CrossLayerTranscoder
from tests.analysis import world
from tests.analysis.circuits.circuit_world import an_image, clip_of, clt_of
from tests.analysis.circuits.residual_world import batches, made_baseline, sae_of

SEEDS = list(range(11))


def transcoder(kind: str) -> CrossLayerTranscoder:
    if kind in ("resid_post", "attn_out", "mlp_out"):
        return sae_of(site=kind)
    if kind == "two layers":
        return sae_of("AbsTopK", layers=[0, 2])
    return clt_of("TopK", kind, skip=kind == "cross_layer")


def numbers(clip: FrozenCLIP, features: Features, seeds: list[int]) -> tuple[Tensor, Tensor]:
    """`(layers, images, positions, ...)` codes and errors, image by image."""
    codes, errors = [], []
    for seed in seeds:
        seen = observe_units(clip, features, world.Images([seed])[0]["image"][None])
        codes.append(torch.stack(seen.codes))
        errors.append(torch.stack(seen.errors))
    return torch.stack(codes, 1), torch.stack(errors, 1)


@pytest.mark.parametrize("kind", ["resid_post", "two layers", "cross_layer"])
@pytest.mark.parametrize("n", [11, 10, 1])
def test_medians_and_means_by_position(kind: str, n: int) -> None:
    clip, clt = clip_of("plain"), transcoder(kind)
    features = Features(clip, clt)
    codes, errors = numbers(clip, features, SEEDS[:n])
    median = baseline_of(clip, features, batches(SEEDS[:n]), "median")
    rank = (n - 1) // 2  # the lower of two
    np.testing.assert_allclose(median.codes.numpy(), np.sort(codes.numpy(), 1)[:, rank], atol=1e-5)
    np.testing.assert_allclose(median.errors.numpy(), np.sort(errors.numpy(), 1)[:, rank], atol=1e-5)
    assert median.n_images == n
    if n > 2:
        assert (median.codes != 0).any(), "some are on in most images: else this shows nothing"
    mean = baseline_of(clip, features, batches(SEEDS[:n]), "mean")
    np.testing.assert_allclose(mean.codes.numpy(), codes.double().mean(1).numpy(), atol=1e-5)
    np.testing.assert_allclose(mean.errors.numpy(), errors.double().mean(1).numpy(), atol=1e-5)
    # layers that do not fit together take another pass
    again = baseline_of(clip, features, batches(SEEDS[:n]), "median", images=n, held_bytes=1)
    assert torch.equal(again.codes, median.codes)
    assert torch.equal(again.errors, median.errors)


def test_a_baseline_is_a_file(tmp_path: Path) -> None:
    clip, sae = clip_of("plain"), sae_of()
    made = made_baseline(clip, sae)
    path = made.save(tmp_path / "baseline" / "median.safetensors", {"transcoder": "abc"})
    found, facts = Baseline.load(path)
    assert torch.equal(found.codes, made.codes)
    assert torch.equal(found.errors, made.errors)
    assert (found.kind, found.n_images, facts["transcoder"]) == ("mean", 1, "abc")
    path.write_bytes(b"something else")
    with pytest.raises(cl.UserError, match=r"median\.safetensors: cannot be read as a baseline"):
        Baseline.load(path)
    with pytest.raises(cl.UserError, match="cannot be read"):
        Baseline.load(tmp_path / "nowhere")
    with pytest.raises(cl.UserError, match=r"codes are \(3, 10, 40\), expected \(2, 10, 40\)"):
        made.check(clip, Features(clip, sae_of(layers=[0, 1])))
    with pytest.raises(cl.UserError, match="one of median, mean, zero"):
        baseline_of(clip, Features(clip, sae), batches([0]), "mode")  # type: ignore[arg-type]
    with pytest.raises(cl.UserError, match="at least one image"):
        baseline_of(clip, Features(clip, sae), lambda: [])


@pytest.mark.parametrize("kind", ["resid_post", "attn_out", "mlp_out", "two layers", "cross_layer", "per_layer"])
@pytest.mark.parametrize("tower", ["plain", "average_pool"])
def test_everything_kept_is_the_untouched_model(kind: str, tower: str) -> None:
    clip, clt = clip_of(tower), transcoder(kind)
    features = Features(clip, clt)
    image = an_image(3).float()
    seen = observe_units(clip, features, torch.stack([an_image(1).float(), image]))
    baseline = made_baseline(clip, clt)
    keep = torch.ones(2, clt.n_layers, clt.n_features + 1, dtype=torch.bool)
    keep[1, 0, 3] = False  # one variant next to it changes nothing of it
    found = masked_embeddings(clip, features, seen, baseline, keep, image=1)
    torch.testing.assert_close(found[0], clip.encode_image(image)[0], atol=2e-6, rtol=0)
    torch.testing.assert_close(clip.encode_image(image)[0], seen.embeddings[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["resid_post", "cross_layer"])
def test_without_errors_it_is_the_replaced_model(kind: str) -> None:
    clip, clt = clip_of("plain"), transcoder(kind)
    features = Features(clip, clt)
    image = an_image(2).float()
    seen = observe_units(clip, features, image[None])
    keep = torch.ones(1, clt.n_layers, clt.n_features + 1, dtype=torch.bool)
    keep[..., -1] = False
    zero = Baseline.zeros(clip, features)
    with replaced(clip, clt):
        wanted = clip.encode_image(image)[0]
    assert float(masked_embeddings(clip, features, seen, zero, keep)[0] @ wanted) == pytest.approx(1, abs=1e-5)
    assert float(seen.embeddings[0] @ wanted) < 0.99, "the errors matter here"


def test_what_is_masked_stands_at_the_baseline_and_what_is_kept_reads_anew() -> None:
    clip, sae = clip_of("plain"), sae_of()
    features = Features(clip, sae)
    image = an_image(5).float()
    seen = observe_units(clip, features, image[None])
    baseline = made_baseline(clip, sae)
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(5, world.LAYERS, world.POSITIONS, world.FEATURES + 1, generator=generator) < 0.5
    found = masked_embeddings(clip, features, seen, baseline, keep)
    for variant in range(5):  # by hand, block by block
        mask = keep[variant]
        with torch.no_grad():
            stream = clip.model.visual._embeds(image[None])
            for layer, block in enumerate(clip.model.visual.transformer.resblocks):
                stream = block(stream)[0]
                codes = sae.encode_layer(stream, layer).dense_layer(0)
                codes = torch.where(mask[layer, :, :-1], codes, baseline.codes[layer])
                rebuilt = (codes @ sae.W_dec[layer][:, 0] + sae.b_dec[layer]) * sae.y_scale[layer]
                rebuilt = rebuilt * (stream.std(-1, correction=0, keepdim=True) + 1e-5) + stream.mean(-1, keepdim=True)
                error = torch.where(mask[layer, :, -1:], seen.errors[layer], baseline.errors[layer])
                stream = (rebuilt + error)[None]
            embedding = clip.model.visual.ln_post(stream)[0, 0] @ clip.model.visual.proj
        torch.testing.assert_close(found[variant], embedding / embedding.norm(), atol=2e-5, rtol=0)


def test_dimensions_are_their_own_codes() -> None:
    clip = clip_of("plain")
    own = Dimensions(clip, "resid_post", range(world.LAYERS))
    image = an_image(4).float()
    seen = observe_units(clip, own, image[None])
    assert all(float(error.abs().max()) == 0 for error in seen.errors)
    usual = baseline_of(clip, own, batches(SEEDS), "median")
    keep = torch.ones(2, world.LAYERS, world.WIDTH + 1, dtype=torch.bool)
    keep[1, 1] = False
    found = masked_embeddings(clip, own, seen, usual, keep)
    torch.testing.assert_close(found[0], clip.encode_image(image)[0], atol=2e-6, rtol=0)
    wanted = clip.run_from(2, usual.codes[1][None])[0]
    torch.testing.assert_close(found[1], wanted, atol=2e-6, rtol=0)


def test_a_mask_of_another_shape() -> None:
    clip, sae = clip_of("plain"), sae_of()
    features = Features(clip, sae)
    seen = observe_units(clip, features, an_image().float()[None])
    with pytest.raises(cl.UserError, match=r"keep must be \(variants, 3, 41\)"):
        masked_embeddings(clip, features, seen, made_baseline(clip, sae), torch.ones(1, 3, 40, dtype=torch.bool))
    final = cl.CrossLayerTranscoder(1, 16, 8, topology="sae", sites=cl.Sites(read="final"))
    with pytest.raises(cl.UserError, match="a transcoder at final has one"):
        Features(clip, final)
