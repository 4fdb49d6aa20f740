"""Any image to RGB, labels checked, augmentation repeatable."""

from __future__ import annotations

import io
import random
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from clt_lightning.data.feed.decode import DecodeError, Decoder, augmented, collate
from clt_lightning.data.feed.image import to_rgb
from clt_lightning.data.tars.reader import RawSample

from ..world import picture, to_tensor

LABEL = frozenset({"label"})


def saved(image: Image.Image, kind: str = "PNG", **how: Any) -> Image.Image:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return Image.open(io.BytesIO(out.getvalue()))


def corner(image: Image.Image) -> tuple[int, ...]:
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    pixel = rgb.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def palette_with_hole() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return saved(image, transparency=1)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (saved(Image.new("L", (4, 4), 77)), (77, 77, 77)),
        (saved(Image.new("1", (4, 4), 1)), (255, 255, 255)),
        (saved(Image.new("RGBA", (4, 4), (10, 20, 30, 255))), (10, 20, 30)),
        (saved(Image.new("RGBA", (4, 4), (10, 20, 30, 0))), (255, 255, 255)),
        (saved(Image.new("LA", (4, 4), (0, 0))), (255, 255, 255)),
        (saved(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)), (255, 255, 255)),
        (palette_with_hole(), (255, 255, 255)),
        (saved(Image.fromarray(np.full((4, 4), 257 * 100, np.uint16))), (100, 100, 100)),
        (Image.fromarray(np.full((4, 4), 257 * 100, np.int32)), (100, 100, 100)),
        (saved(Image.fromarray(np.full((4, 4), 0.2, np.float32)), "TIFF"), (51, 51, 51)),
        (saved(Image.fromarray(np.full((4, 4), 51, np.float32)), "TIFF"), (51, 51, 51)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
    ],
    ids=["L", "1", "RGBA", "clear", "LA", "RGB+tRNS", "P+tRNS", "16 bit", "I", "F 0..1", "F 0..255", "CMYK"],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    assert corner(image) == expected


def test_a_cmyk_jpeg_and_a_palette_keep_their_colour() -> None:
    red = corner(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red[0] > 240
    assert max(red[1:]) < 15
    assert corner(saved(Image.new("RGB", (4, 4), (10, 20, 30)).quantize(4))) == (10, 20, 30)


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (8, 4), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    assert to_rgb(saved(image, "JPEG", exif=exif)).size == (4, 8)


def decode(parts: dict[str, bytes], **how: Any) -> dict[str, Any]:
    return Decoder(to_tensor, **how)(RawSample("0/s1", "0.tar", parts))


@pytest.mark.parametrize(
    ("parts", "kind", "words"),
    [
        ({"cls": b"1"}, "no image", "it has cls, but no webp"),
        ({"png": b"", "cls": b"1"}, "undecodable image", "`png`"),
        ({"png": picture()[:40], "cls": b"1"}, "undecodable image", "`png`"),
        ({"png": picture()}, "missing label", "`cls`"),
        ({"png": picture(), "cls": b"1.5"}, "bad label", "'1.5'"),
        ({"png": picture(), "cls": b"cat"}, "bad label", "'cat'"),
        ({"png": picture(), "cls": b"3"}, "label out of range", "0..2 (3 class names)"),
        ({"png": picture(), "cls": b"-2"}, "label out of range", "-2"),
    ],
)
def test_bad_samples_are_told_apart(parts: dict[str, bytes], kind: str, words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(parts, fields=LABEL, n_classes=3)
    assert caught.value.kind == kind
    assert words in str(caught.value)


def test_labels_and_maps() -> None:
    assert decode({"png": picture(), "cls": b" 2\n"}, fields=LABEL, n_classes=3)["label"] == 2
    assert decode({"png": picture(), "cls": b"-1"}, fields=LABEL, n_classes=3)["label"] == -1
    assert decode({"png": picture(), "cls": b"700"}, fields=LABEL, n_classes=3, label_map={700: 1})["label"] == 1
    with pytest.raises(DecodeError):
        decode({"png": picture(), "cls": b"2"}, fields=LABEL, n_classes=3, label_map={700: 1})


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_multi_hot_and_captions() -> None:
    both = frozenset({"multi_hot", "captions"})
    parts = {"png": picture(), "npy": npy(np.array([0, 1, 1], np.uint8)), "txt": "a cat\n\n ein Bär \n".encode()}
    sample = decode(parts, fields=both, n_classes=3)
    assert torch.equal(sample["multi_hot"], torch.tensor([0.0, 1.0, 1.0]))
    assert sample["captions"] == ["a cat", "ein Bär"]
    with pytest.raises(DecodeError, match=r"shape \(4,\)"):
        decode(parts, fields=both, n_classes=4)
    for wrong in (npy(np.zeros((3, 1))), b"junk", npy(np.array([{}], object))):
        with pytest.raises(DecodeError, match="`npy`"):
            decode(parts | {"npy": wrong}, fields=both, n_classes=3)


@pytest.mark.parametrize("how", ["flip", "crop"])
def test_augmentation_depends_on_seed_epoch_and_key_alone(how: Literal["flip", "crop"]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")

    def views(**of: Any) -> torch.Tensor:
        decoder = Decoder(to_tensor, augment=how, **of)
        return torch.stack(
            [decoder(RawSample(f"0/s{i}", "0.tar", {"png": out.getvalue()}))["image"] for i in range(16)]
        )

    assert torch.equal(views(seed=1, epoch=1), views(seed=1, epoch=1))
    assert not torch.equal(views(seed=1, epoch=1), views(seed=1, epoch=2))
    assert not torch.equal(views(seed=1, epoch=1), views(seed=2, epoch=1))
    assert len({view.numpy().tobytes() for view in views()}) == (2 if how == "flip" else 16)


def test_crops_stay_inside_and_keep_their_share() -> None:
    image = Image.new("RGB", (60, 40))
    for seed in range(200):
        cut = augmented(image, "crop", random.Random(seed))
        assert cut.width <= 60
        assert cut.height <= 40
        assert cut.width * cut.height >= 0.4 * 60 * 40


def test_batches_have_the_documented_shapes_also_when_empty() -> None:
    fields = frozenset({"label", "multi_hot", "captions"})
    full = {"image": torch.ones(3, 8, 8), "label": 1, "multi_hot": torch.ones(5), "captions": ["a"], "key": "0/s1"}
    batch = collate([full, full], fields, to_tensor, 5)
    assert batch["image"].shape == (2, 3, 8, 8)
    assert batch["label"].dtype == torch.int64
    assert batch["multi_hot"].shape == (2, 5)
    assert batch["captions"] == [["a"], ["a"]]
    assert batch["key"] == ["0/s1", "0/s1"]
    empty = collate([], fields, to_tensor, 5)
    assert empty["image"].shape == (0, 3, 8, 8)
    assert empty["label"].shape == (0,)
    assert empty["label"].dtype == torch.int64
    assert empty["multi_hot"].shape == (0, 5)
    assert empty["key"] == []
    assert set(collate([full], frozenset(), to_tensor, None)) == {"image", "key"}
