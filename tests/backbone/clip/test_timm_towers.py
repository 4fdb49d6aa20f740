"""open_clip's models whose image tower is timm's, from a folder of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import clt_lightning as cl
from clt_lightning.core.errors import UserError

from .tiny import TOKENIZER, tiny_config


def write(folder: Path, tower: str, pool: str, proj: str | None) -> open_clip.CustomTextCLIP:
    config = tiny_config()
    config["vision_cfg"] = {
        "image_size": 160,
        "timm_model_name": tower,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": proj,
    }
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    tokenizer = {"words": TOKENIZER.words, "context_length": TOKENIZER.context_length}
    content = {"model_cfg": config | {"custom_text": True}, "tokenizer": tokenizer}
    content["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("tower", "pool", "proj", "sets"),
    [
        ("test_vit", "token", "linear", ("cls", "patch", "all")),
        ("test_vit3", "map", "none", ("register", "patch", "all")),
        ("test_vit2", "avg", None, ("register", "patch", "all")),
    ],
)
def test_images_and_texts(tmp_path: Path, tower: str, pool: str, proj: str | None, sets: tuple[str, ...]) -> None:
    model = write(tmp_path, tower, pool, proj)
    clip = cl.FrozenCLIP("local", str(tmp_path))
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(clip.encode_image(images, normalize=False), model.encode_image(images))
    assert clip.tokens.sets == sets
    assert clip.mean == (0.5, 0.5, 0.5)
    texts = ["a red cat", "the big dog"]
    expected = torch.nn.functional.normalize(model.encode_text(TOKENIZER(texts)), dim=-1)
    torch.testing.assert_close(clip.encode_text(texts), expected)
    assert clip.describe()["n_registers"] == int("register" in sets)
    if clip.embed_dim == expected.shape[1]:
        head = clip.zero_shot_head(["cat", "dog"], ["a photo of a {c}"])
        assert clip.logits(clip.encode_image(images), head).shape == (2, 2)
    rough = cl.FrozenCLIP("local", str(tmp_path), precision="bf16")
    assert rough.capture(images).y.dtype == torch.bfloat16
    assert float((rough.encode_image(images) * clip.encode_image(images)).sum(1).min()) > 0.98
    fine = cl.FrozenCLIP("local", str(tmp_path), precision="fp64")
    assert fine.capture(images, layers=[0]).y.dtype == torch.float64


def test_a_tower_that_is_no_vision_transformer(tmp_path: Path) -> None:
    write(tmp_path, "test_vit", "token", "linear")
    path = tmp_path / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"]["vision_cfg"]["timm_model_name"] = "test_resnet"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="timm tower 'test_resnet' for images, a ResNet: a Vision"):
        cl.FrozenCLIP("local", str(tmp_path))
