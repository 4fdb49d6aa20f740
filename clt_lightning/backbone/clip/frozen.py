"""The frozen CLIP: an open_clip model, images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.backbone.backbone import Backbone, Precision, check_precision
from clt_lightning.backbone.clip.build import build_model
from clt_lightning.backbone.clip.prompts import Template, check_prompts, fill
from clt_lightning.backbone.clip.short import encode_tokens
from clt_lightning.backbone.clip.source import find_source
from clt_lightning.backbone.clip.supported import check_config
from clt_lightning.backbone.clip.tokenizer import Tokenizer, doubts, make_tokenizer
from clt_lightning.backbone.families import family_of
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.core.say import doubt


class FrozenCLIP(Backbone):
    """An open_clip model that never changes (`Backbone`), with its text tower.

    Args:
        name: architecture as open_clip names it (`open_clip.list_models()`), e.g. `ViT-B-32-quickgelu` (OpenAI's
            weights were trained with QuickGELU, so not `ViT-B-32`); or `hf-hub:ORG/NAME` or `local-dir:FOLDER`, which
            bring weights along (`pretrained` is then left out).
        pretrained: where the weights come from: a tag of open_clip's (`openai`); the path of a file (safetensors, a
            state dict of `torch.save`, or OpenAI's own TorchScript archive); a folder with `open_clip_config.json` and
            weights, such as a snapshot of the Hugging Face Hub; `hf-hub:ORG/NAME[@REVISION]` or `local-dir:FOLDER`;
            `demo` for the small CLIP that comes with the package; null for random weights. A folder, a repository and
            `demo` bring their architecture along, and `name` is not used; a file does if `name` is none of open_clip's.
        precision: `fp32`; `bf16`: weights in bfloat16, LayerNorms and returned embeddings in fp32; or `fp64`, for
            checks. The backbone's own, whatever the trainer's is.
        seed: seed of the random weights when `pretrained` is null.

    Attributes:
        quick_gelu: whether the MLPs compute `x * sigmoid(1.702 x)` in the place of GELU.

    Raises:
        UserError: unknown name or tag, weights trained with the other GELU, weights that cannot be had, a file that
            holds none (the message says what it is), or an architecture without residual blocks of `ln_2`, `mlp`,
            `ls_2` (ResNets, timm towers).
    """

    has_text = True

    def __init__(
        self,
        name: str = "ViT-B-32-quickgelu",
        pretrained: str | Path | None = "openai",
        precision: Precision = "fp32",
        seed: int = 0,
    ) -> None:
        check_precision(precision)
        source = find_source(name, None if pretrained is None else str(pretrained))
        check_config(source.name, source.model_cfg)
        model = build_model(source, precision, seed)
        super().__init__(family_of(model, source.name), source.name, source.pretrained, precision)
        self.seed = seed
        self.quick_gelu = source.quick_gelu
        self._source = source
        self._tokenizer: Tokenizer | None = None

    # -- texts -------------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """Texts -> int64 tokens `(texts, context_length)`, as this model's text tower reads them.

        Raises:
            UserError: it needs the package transformers, which is not installed.
        """
        if self._tokenizer is None:
            self._tokenizer = make_tokenizer(self._source)
        return self._tokenizer

    def encode_text(self, texts: Sequence[str] | Int[Tensor, "texts length"]) -> Float[Tensor, "texts embed_dim"]:
        """Embed texts.

        Args:
            texts: sentences, or their tokens `(texts, context_length)`.

        Returns:
            Unit-norm `(texts, embed_dim)` in fp32.

        Raises:
            UserError: tokens that the text tower does not have.
        """
        tokens = texts if isinstance(texts, Tensor) else self.tokenizer(list(texts))
        text_tower = getattr(self.model, "text", self.model)
        size = getattr(text_tower, "vocab_size", None)
        if size is not None and tokens.numel() and int(tokens.max()) >= size:
            raise UserError(
                f"the text tower of '{self.name}' has {size:,} tokens, its tokenizer gives number "
                f"{int(tokens.max()):,}: its config names another tokenizer than it was trained with"
            )
        with self.running(grad=False):
            embeddings = encode_tokens(self.model, tokens.to(self.device))
            return F.normalize(embeddings.float(), dim=-1)

    def zero_shot_head(
        self,
        classnames: Sequence[str],
        templates: Sequence[Template],
        batch_size: int = 512,
        progress: bool = True,
    ) -> Float[Tensor, "embed_dim classes"]:
        """The zero-shot classifier: for every class, the mean of its prompts' unit embeddings, scaled to length 1.

        Warns where such a classifier says little (`zero_shot_doubts`).

        Args:
            classnames: one name a class.
            templates: sentences with `{c}`, `{}` or `{class}` where the name goes, or functions of the name.
            batch_size: about how many prompts to encode at once.
            progress: say how far it is, where it takes long.

        Returns:
            `(embed_dim, classes)` in fp32, unit columns.

        Raises:
            UserError: no class names or templates, or a template without a place for the name.
        """
        for text in self.zero_shot_doubts(classnames, templates):
            doubt(text, stacklevel=3)
        return self.embed_names(classnames, templates, batch_size, progress).T.contiguous()

    def zero_shot_doubts(self, classnames: Sequence[str], templates: Sequence[Template]) -> list[str]:
        """Why zero-shot predictions with these names say little, in sentences; empty where nothing speaks against them.

        Random weights, class names that the tokenizer reads as one and the same text, or that it does not know.

        Args:
            classnames: as `zero_shot_head` takes them.
            templates: as well.
        """
        check_prompts(classnames, templates)
        found = doubts(classnames, templates, self.tokenizer)
        if self.has_random_weights:
            found.insert(0, "this CLIP has random weights (pretrained is null): its zero-shot predictions are guesses")
        return found

    def embed_names(
        self,
        names: Sequence[str],
        templates: Sequence[Template],
        batch_size: int = 512,
        progress: bool = True,
        what: str = "zero-shot head",
        unit: str = "classes",
    ) -> Float[Tensor, "names embed_dim"]:
        """The mean of each name's prompts' unit embeddings, scaled to length 1.

        Args:
            names: what goes into the templates.
            templates: as `zero_shot_head` takes them.
            batch_size: about how many prompts to encode at once.
            progress: say how far it is, where it takes long.
            what: what the names are for, in the lines that say how far it is.
            unit: what they are, in the plural.

        Returns:
            Unit-norm `(names, embed_dim)` in fp32.

        Raises:
            UserError: no names or templates, or a template without a place for the name.
        """
        check_prompts(names, templates)
        step = max(1, batch_size // len(templates))
        rows = []
        with Progress(what, len(names), unit, show=progress) as bar:
            for start in range(0, len(names), step):
                batch = names[start : start + step]
                prompts = [fill(template, name) for name in batch for template in templates]
                of_each = self.encode_text(prompts).unflatten(0, (len(batch), len(templates))).mean(dim=1)
                rows.append(F.normalize(of_each, dim=-1))
                bar.update(len(batch))
        return torch.cat(rows)

    # -- the record --------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What a run records of its backbone: plain values, ready for JSON."""
        return super().describe() | {
            "seed": self.seed if self.pretrained is None else None,
            "gelu": "quick_gelu" if self.quick_gelu else "gelu",
            "open_clip": open_clip.__version__,
        }
