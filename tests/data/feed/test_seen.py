"""Very long images: only what the transform keeps is made, and it is the same."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision import transforms

from clt_lightning.data.feed import seen
from clt_lightning.data.feed.decode import DecodeError, Decoder
from clt_lightning.data.feed.seen import transformed
from clt_lightning.data.tars.reader import RawSample


def clip_transform(
    size: int | tuple[int, int], interpolation: str = "bicubic", mode: str = "shortest"
) -> transforms.Compose:
    found: transforms.Compose = image_transform_v2(
        PreprocessCfg(size=size, interpolation=interpolation, resize_mode=mode), is_train=False
    )
    return found


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8))


THIN = [(10, 300), (300, 10), (7, 500), (1, 400), (400, 1), (3, 97), (64, 1000), (333, 1777), (50, 201)]


@pytest.mark.parametrize("size", [64, 224, (96, 64)])
@pytest.mark.parametrize("width_height", THIN)
def test_ordinary_thin_images_are_the_same(size: int | tuple[int, int], width_height: tuple[int, int]) -> None:
    if max(width_height) / min(width_height) <= 20:
        transform, image = clip_transform(size), noise(*width_height)
        assert torch.equal(transformed(image, transform), transform(image))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 224, (96, 64)])
@pytest.mark.parametrize("width_height", THIN)
def test_the_short_way_gives_the_same_pixels(
    monkeypatch: pytest.MonkeyPatch, interpolation: str, size: int | tuple[int, int], width_height: tuple[int, int]
) -> None:
    monkeypatch.setattr(seen, "_FACTOR", 1)
    transform, image = clip_transform(size, interpolation), noise(*width_height)
    std = torch.tensor(transform.transforms[-1].std)[:, None, None]
    far = ((transformed(image, transform) - transform(image)) * std * 255).abs()
    assert far.max() < 1.01  # one step of 8 bits, where a sum lies between two
    assert (far > 0.5).float().mean() < 0.02


def test_a_cut_that_pads_pads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "_FACTOR", 0)
    steps = [transforms.Resize(20), transforms.CenterCrop(32), transforms.ToTensor()]
    transform, image = transforms.Compose(steps), noise(3, 90)
    assert (transformed(image, transform) - transform(image)).abs().max() < 1.01 / 255


@pytest.mark.parametrize("width_height", [(1, 4000), (4000, 1), (2, 30_000)])
def test_a_long_image_takes_no_gigabytes(width_height: tuple[int, int]) -> None:
    out = io.BytesIO()
    Image.new("RGB", width_height, (10, 20, 30)).save(out, "PNG")
    tracemalloc.start()
    image = Decoder(clip_transform(336))(RawSample("0/s", "0.tar", {"png": out.getvalue()}))["image"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape == (3, 336, 336)
    assert torch.allclose(image, image[:, :1, :1])
    assert peak < 50 << 20


@pytest.mark.parametrize("mode", ["squash", "longest"])
def test_other_transforms_get_the_whole_image(mode: str) -> None:
    transform, image = clip_transform(32, mode=mode), noise(4, 100)
    assert torch.equal(transformed(image, transform), transform(image))


def test_an_image_that_the_transform_cannot_take_is_a_bad_sample() -> None:
    out = io.BytesIO()
    noise(4, 400).save(out, "PNG")
    with pytest.raises(DecodeError, match=r"4 x 400.*height and width must be > 0") as caught:
        Decoder(clip_transform(32, mode="longest"))(RawSample("0/s", "0.tar", {"png": out.getvalue()}))
    assert caught.value.kind == "image that the transform refuses"
