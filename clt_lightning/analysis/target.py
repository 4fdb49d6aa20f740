"""What an explanation is about: a class, a difference of classes, any direction of the embedding space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.core.errors import UserError

if TYPE_CHECKING:
    from clt_lightning.analysis.probes import Probe

#: What a class is held against by `centred`, in names
_MEAN = "mean of classes"


@dataclass(frozen=True)
class Target:
    """A number that is read from an image's unit embedding e: `scale * <e, direction>`.

    Attributes:
        name: in words, such as `cat` or `cat - dog`.
        direction: `(embed_dim,)`, float32.
        scale: from cosines to logits; CLIP's 100.
    """

    name: str
    direction: Float[Tensor, " embed_dim"]
    scale: float = 100.0

    @classmethod
    def of_class(
        cls, head: Float[Tensor, "embed_dim classes"], classnames: Sequence[str], which: str | int, scale: float = 100.0
    ) -> Self:
        """The logit of one class.

        Args:
            head: `(embed_dim, classes)` from `zero_shot_head`.
            classnames: names of its columns.
            which: a name or a column.
            scale: from cosines to logits.

        Raises:
            UserError: no such class.
        """
        index = class_index(head, classnames, which)
        return cls(classnames[index], head[:, index].detach().float().cpu(), scale)

    @classmethod
    def difference(
        cls,
        head: Float[Tensor, "embed_dim classes"],
        classnames: Sequence[str],
        more: str | int,
        less: str | int,
        scale: float = 100.0,
    ) -> Self:
        """The logit of one class minus that of another; arguments as for `of_class`."""
        a, b = (class_index(head, classnames, which) for which in (more, less))
        return cls(f"{classnames[a]} - {classnames[b]}", (head[:, a] - head[:, b]).detach().float().cpu(), scale)

    @classmethod
    def centred(
        cls, head: Float[Tensor, "embed_dim classes"], classnames: Sequence[str], which: str | int, scale: float = 100.0
    ) -> Self:
        """The logit of one class minus the mean of all classes'; arguments as for `of_class`."""
        index = class_index(head, classnames, which)
        direction = (head[:, index] - head.mean(1)).detach().float().cpu()
        return cls(f"{classnames[index]} - {_MEAN}", direction, scale)

    @classmethod
    def of_words(
        cls, head: Float[Tensor, "embed_dim classes"], classnames: Sequence[str], words: str, scale: float = 100.0
    ) -> Self:
        """The logit of a class; or, of words in several classes' names (`square`), the mean of their logits.

        Args:
            head: `(embed_dim, classes)` from `zero_shot_head`.
            classnames: names of its columns.
            words: a class's name, or whole words of some.
            scale: from cosines to logits.

        Raises:
            UserError: no class has that name or those words in it.
        """
        if words not in classnames:
            wanted = f" {words.lower()} "
            found = [i for i, name in enumerate(classnames) if wanted.strip() and wanted in f" {name.lower()} "]
            if found and head.shape[1] == len(classnames):
                return cls(words, head[:, found].mean(1).detach().float().cpu(), scale)
        return cls.of_class(head, classnames, words, scale)

    @classmethod
    def of_caption(cls, backbone: Any, caption: str) -> Self:
        """The logit of a caption: the image's cosine with it, times CLIP's scale. Its name is the caption in quotes.

        Args:
            backbone: one with a text tower.
            caption: a sentence.

        Raises:
            UserError: an empty caption, or a backbone without a text tower.
        """
        if not caption.strip():
            raise UserError("a caption is a sentence, this one is empty")
        return cls(f'"{caption}"', backbone.encode_text([caption])[0].detach().float().cpu(), backbone.logit_scale)

    @classmethod
    def of_probe(cls, probe: Probe, which: int, name: str, less: int | None = None) -> Self:
        """One output of a linear probe of the embedding, without its constant; or one less another.

        Args:
            probe: of the unit embedding (`analysis.probes`).
            which: the output.
            name: in words.
            less: the output that is taken off.

        Raises:
            UserError: no such output, or a probe of some columns alone.
        """
        n = probe.weight.shape[1]
        for one in (which, *(() if less is None else (less,))):
            if not 0 <= one < n:
                raise UserError(f"output {one} is outside 0..{n - 1} of the probe")
        if probe.chosen is not None:
            raise UserError("this probe reads some columns alone: a target reads the whole embedding")
        direction = probe.weight[:, which] - (0 if less is None else probe.weight[:, less])
        return cls(name, direction.detach().float().cpu(), 1.0)

    @classmethod
    def parse(
        cls,
        head: Float[Tensor, "embed_dim classes"],
        classnames: Sequence[str],
        text: str,
        scale: float = 100.0,
        backbone: Any = None,
    ) -> Self:
        """From `cat`, `cat - dog`, `cat - mean of classes` or `"a cat, asleep" - dog`: the inverse of a target's name.

        Each side is a class, words that several classes' names have (`of_words`), or a caption in double quotes. Where
        names hold ` - ` themselves, the first place at which both sides are names counts.

        Args:
            head: `(embed_dim, classes)`.
            classnames: names of its columns.
            text: what is explained.
            scale: from cosines to logits.
            backbone: what embeds captions; None: there are none.

        Raises:
            UserError: words that name no class.
        """

        def side(words: str) -> Target:
            if backbone is not None and words not in classnames:
                if _is_caption(words):
                    return cls.of_caption(backbone, words[1:-1])
                if '"' in words:
                    raise UserError(f"a caption stands between two double quotes, got {words}")
            return cls.of_words(head, classnames, words, scale)

        parts = text.split(" - ")
        if text in classnames or len(parts) == 1 or _is_caption(text.strip()):
            alone = side(text.strip())
            return cls(alone.name, alone.direction, alone.scale)
        splits = [(" - ".join(parts[:n]).strip(), " - ".join(parts[n:]).strip()) for n in range(1, len(parts))]
        known = (*classnames, _MEAN)
        named = [pair for pair in splits if all(words in known or _is_caption(words) for words in pair)]
        # words of several classes may stand beside a caption
        whole = [pair for pair in splits if not any(words.count('"') % 2 for words in pair)]
        more, less = (named or whole or splits)[0]
        a = side(more)
        if less == _MEAN and less not in classnames:
            return cls(f"{a.name} - {_MEAN}", a.direction - head.mean(1).detach().float().cpu(), scale)
        b = side(less)
        return cls(f"{a.name} - {b.name}", a.direction - b.direction, scale)

    def value(self, embeddings: Float[Tensor, "images embed_dim"]) -> Float[Tensor, " images"]:
        """`(images,)` from unit embeddings `(images, embed_dim)`."""
        return self.scale * (embeddings.float() @ self.direction.to(embeddings.device))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "scale": self.scale, "direction": self.direction.tolist()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            UserError: something is missing.
        """
        try:
            return cls(str(content["name"]), torch.tensor(content["direction"]).float(), float(content["scale"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"this is no target: {error!r}; it holds name, direction and scale") from error


def _is_caption(words: str) -> bool:
    """Whether words are one caption in double quotes."""
    return len(words) > 2 and words[0] == words[-1] == '"' and words.count('"') == 2


def class_index(head: Tensor, classnames: Sequence[str], which: str | int) -> int:
    """The column of a class, by name or number.

    Raises:
        UserError: no such class, or a name that several have.
    """
    from difflib import get_close_matches

    if head.shape[1] != len(classnames):
        raise UserError(f"the head has {head.shape[1]} columns for {len(classnames)} class names")
    if isinstance(which, int):
        if not 0 <= which < len(classnames):
            raise UserError(f"class {which} is outside 0..{len(classnames) - 1}")
        return which
    found = [i for i, name in enumerate(classnames) if name == which]
    if len(found) != 1:
        near = ", ".join(get_close_matches(which, classnames, 3)) or ", ".join(list(classnames)[:3])
        reason = "there is no class" if not found else f"{len(found)} classes are named"
        raise UserError(f"{reason} {which!r}; there are, for example: {near}")
    return found[0]
