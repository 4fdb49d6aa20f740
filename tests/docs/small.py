"""A world in which the docs' commands and blocks run in seconds: made sources, tiny models, small numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import factory

from tests.data.sets.test_shard import cifar, coco, imagenet, wnid_list
from tests.data.world import picture

#: What a command gets behind its own words, which are left as they are: the last one wins
MORE: dict[str, list[str]] = {
    "fit": [
        *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto", "--trainer.precision=32-true"),
        *("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.enable_progress_bar=false"),
        *("--trainer.limit_val_batches=1", "--model.backbone.precision=fp32", "--model.transcoder.n_features=128"),
        *("--model.tokens.statistics=128", "--model.schedule.warmup_steps=1", "--model.loss.cascade.images=2"),
        *("--data.init_args.num_workers=0", "--data.init_args.batch_size=8", "--figures.every=0"),
        *("--curves.every_n_steps=0", "--checkpoints.last_every_n_steps=2", "--shares.images=8"),
    ],
    "test": [
        *("--evaluate.population.images=8", "--evaluate.population.resamples=20", "--evaluate.bootstrap=20"),
        *("--evaluate.faithfulness.draws=2", "--evaluate.features.k=2", "--evaluate.features.samples=1"),
        *("--evaluate.effects.check_pairs=8", "--evaluate.effects.integrated_pairs=4"),
        *("--evaluate.cascade.singles=false", "--evaluate.cascade.control_share=0.1"),
    ],
    "report": ["--images", "1", "--mistakes", "0", "--pages", "2", "--circuits", "1", "--queries", "1"],
    "bench": ["--train-images", "64", "--val-images", "16"],
    "serve": ["--port", "0", "--images", "4"],
}
#: Options whose value is smaller, where a command has them
FEWER = {"--validate": "2", "--validate-images": "2", "--curves": "2", "--evolution": "2", "--images": "4"}
#: What stands in the place of a reader's own things
INSTEAD = {"/new/place/cifar100": "data/cifar100"}
#: Commands that must have run before those of a page, since the page says so in words
BEFORE: dict[str, list[list[str]]] = {
    "docs/weights.md": [["export", "--run", "runs/quickstart", "--output", "exported"]],
}
#: Parts of Python blocks that are made smaller: page -> (as it stands there, as it is run)
SMALLER: dict[str, list[tuple[str, str]]] = {
    "README.md": [
        ('"ViT-B-32-quickgelu", pretrained="openai"', 'pretrained="demo"'),
        ("runs/vitb32/version_0/transcoder", "runs/quickstart/version_0/transcoder"),
        ("target=11", "target=3"),
        ("range(3, 12)", "range(1, 4)"),
    ],
    "docs/attention.md": [
        ("max_steps=600", "max_steps=2"),
        ("n_features=768", "n_features=48"),
        ("limit=24", "limit=1"),
    ],
    "docs/circuits.md": [
        ("limit=200), own_class, images=200", "limit=3), own_class, images=3"),
        ("int((embedding @ head).argmax())", 'names.index("red square")'),
    ],
    "docs/data.md": [("data/mine", "data/photos")],
    "docs/priors.md": [('"n_test": 400', '"n_test": 16')],
    "docs/sites.md": [("n_features=6144", "n_features=64"), ("n_features=24576", "n_features=64"), (", ...)", ")")],
    "docs/weights.md": [('"me/my-transcoder", revision="v1"', '"exported"')],
}


def words_for(words: tuple[str, ...]) -> list[str]:
    """A command's words at a small size, without `clt-lightning`."""
    name, *rest = words[1:]
    rest = [FEWER.get(before, _instead(word, rest)) for before, word in zip(["", *rest], rest)]
    more = list(MORE.get(name, ()))
    if name == "shard" and rest[0] == "imagenet100":
        more += ["--class-list", "made/list.txt"]
    if name == "fit":
        text = " ".join(rest)
        if "quickstart" in text:
            more += ["--data.init_args.n_train=64", "--data.init_args.n_test=64", "--data.init_args.n_val=16"]
        else:
            more += ["--model.backbone.pretrained=null", "--zero_shot.windows=[0-]"]
        if "imagenet100" in text:
            more += ["--data.init_args.class_list=made/list.txt"]
        if "jumprelu" not in text and "activation.init_args.k" not in text and "visionclt" not in text:
            more += ["--model.transcoder.activation.init_args.k=4"]
    return [name, *rest, *more]


def _instead(word: str, words: list[str]) -> str:
    for old, new in INSTEAD.items():
        word = word.replace(old, new)
    return {"coco": "made/coco", "imagenet100": "made/imagenet"}[words[0]] if word == "FOLDER" else word


@contextmanager
def tiny_architectures(folder: Path) -> Iterator[None]:
    """While active, open_clip's ViT-B/32 and B/16 are tiny ones of 12 layers under the same names."""
    folder.mkdir()
    vision = {"image_size": 32, "layers": 12, "width": 32, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    for patch in (32, 16):
        config = {
            "embed_dim": 16,
            "quick_gelu": True,
            "vision_cfg": vision | {"patch_size": patch // 2},
            "text_cfg": text,
        }
        (folder / f"ViT-B-{patch}-quickgelu.json").write_text(json.dumps(config))
    before = dict(factory._MODEL_CONFIGS)
    open_clip.add_model_config(folder)
    try:
        yield
    finally:
        factory._MODEL_CONFIG_PATHS.remove(folder)
        factory._MODEL_CONFIGS.clear()
        factory._MODEL_CONFIGS.update(before)


def make_sources(root: Path) -> None:
    """What the commands read: official archives with a few samples, and a folder of photos."""
    cifar(root)
    (root / "made").mkdir()
    coco(root / "made" / "coco", zipped=True)
    imagenet(root / "made" / "imagenet", "archives")
    shutil.move(wnid_list(root / "made"), root / "made" / "list.txt")
    for number in range(40):
        place = root / "photos" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(picture(6 * number, size=48, kind="jpg"))


def names_for(page: str) -> dict[str, Any]:
    """What the Python blocks of a page take as given."""
    import clt_lightning as cl

    run = cl.open_run("runs/quickstart")
    batch = next(iter(run.batches("test", limit=8)))
    given: dict[str, Any] = {"cl": cl, "torch": torch, "run": run, "clip": run.clip, "images": batch["image"]}
    given |= {"image": batch["image"][0], "label": int(batch["label"][0])}
    given |= {"classnames": run.datamodule.classnames, "templates": run.datamodule.templates}
    if page == "docs/backbones.md":
        given["images"] = torch.randn(1, 3, 518, 518)
    if page == "docs/sites.md":
        given["vit"] = cl.FrozenViT("vit_base_patch32_224", pretrained=None)
        given["images"] = torch.randn(2, 3, 224, 224)
    return given
