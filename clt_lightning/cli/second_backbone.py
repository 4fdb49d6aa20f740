"""`--index`: a second backbone, whose embedding says how alike images are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clt_lightning.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from clt_lightning.analysis.run import Run

#: What may be given, for the help
FORMS = (
    "a name of timm's or open_clip's, with a tag of weights behind a colon (vit_small_patch14_dinov2, "
    "ViT-B-32-quickgelu:openai) or without for the library's first ones; demo; or `{class_path: FrozenViT, init_args: "
    "{name: ..., pretrained: ...}}`, or a YAML file that holds this"
)


def second_backbone(opened: Run, text: str | None) -> tuple[Callable[[Tensor], Tensor] | None, str]:
    """The space in which images are near each other, and what it is called.

    Args:
        opened: the run, whose images it sees at its own size and normalisation.
        text: one of `FORMS`; None: the run's own embedding.

    Returns:
        preprocessed images of the run `(images, 3, size, size)` to unit embeddings `(images, width)`, None for the
        run's own; and its name.

    Raises:
        UserError: no such backbone, or one that cannot be had.
    """
    if text is None:
        return None, "own embedding"
    import PIL.Image
    import torch

    from clt_lightning.backbone.make import make_backbone

    try:
        second = make_backbone(_described(text)).to(opened.clip.device)
    except UserError as error:
        raise UserError(f"--index {text}: {error}") from error

    def embed(images: Tensor) -> Tensor:
        # the second backbone's own size and normalisation, from the pixels that the first one sees
        pictures = [PIL.Image.fromarray(opened.pixels(image.cpu()).permute(1, 2, 0).numpy()) for image in images]
        return second.encode_image(torch.stack([second.preprocess(picture) for picture in pictures]))

    return embed, f"{second.name} ({second.pretrained or 'random weights'})"


def _described(text: str) -> Any:
    import yaml

    from clt_lightning.core.files import read_text
    from clt_lightning.core.paths import expand

    inline = text.lstrip().startswith("{")
    file = None if inline else Path(expand(text, "--index"))
    if not inline and file is not None and file.suffix not in (".yaml", ".yml") and not file.is_file():
        return _named(text)
    try:
        return yaml.safe_load(text if file is None else read_text(file))
    except yaml.YAMLError as error:
        raise UserError(f"this is no YAML ({error})") from error


def _named(text: str) -> dict[str, Any]:
    """Class and arguments of a name, with or without a tag."""
    import open_clip

    if text == "demo":
        return {"class_path": "clt_lightning.FrozenCLIP", "init_args": {"pretrained": "demo"}}
    name, _, tag = text.partition(":")
    if name in open_clip.list_models():
        tags = open_clip.list_pretrained_tags_by_model(name)
        if not tag and not tags:
            raise UserError("open_clip has no weights of it; name a file of weights behind a colon")
        arguments = {"name": name, "pretrained": tag or tags[0]}
        return {"class_path": "clt_lightning.FrozenCLIP", "init_args": arguments}
    return {"class_path": "clt_lightning.FrozenViT", "init_args": {"name": name, "pretrained": tag or "default"}}
