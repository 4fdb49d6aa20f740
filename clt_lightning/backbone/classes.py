"""Class logits of a frozen model: of a text tower, a head that was given, or its own classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.backbone.class_head import ClassHead
from clt_lightning.backbone.frozen import Frozen
from clt_lightning.core.errors import UserError


class Classes(Frozen):
    """How `Backbone` names classes."""

    has_text = False
    #: Class logits without a text tower (`use_head`)
    class_head: ClassHead | None = None

    def logits(
        self, embeddings: Float[Tensor, "images embed_dim"], head: Float[Tensor, "embed_dim classes"]
    ) -> Float[Tensor, "images classes"]:
        """Class logits `(images, classes)`: cosine similarities times `logit_scale`, in fp32."""
        return self.logit_scale * (embeddings.float() @ head.float().to(embeddings.device))

    @property
    def head(self) -> str:
        """What makes class logits of an embedding: `zero_shot`, a head that was given (`use_head`: a linear `probe`, or
        the model's own `classifier`), the model's own `classifier` where none was, or `none`.
        """
        if self.has_text:
            return "zero_shot"
        if self.class_head is not None:
            return self.class_head.kind
        return "none" if self.family.classifier() is None else "classifier"

    def use_head(self, head: ClassHead | None) -> None:
        """Takes class logits from a head of `probe` from now on, in the place of a text tower.

        Raises:
            UserError: the head was made for another backbone.
        """
        if head is not None:
            head.check(self.embed_dim, head.classnames, str(self.describe()["weights_sha256"]))
        self.class_head = head

    def names_classes(self, classnames: Sequence[str] | None, templates: Sequence[Any] | None) -> bool:
        """Whether `head_for` gives logits of these classes: a text tower and prompts, or a head of `probe`."""
        return bool(classnames) and (bool(templates) if self.has_text else self.class_head is not None)

    def head_for(self, classnames: Sequence[str], templates: Sequence[Any]) -> Float[Tensor, "embed_dim classes"]:
        """Of some classes, what makes logits of unit embeddings: the zero-shot head, or the head that was given.

        Args:
            classnames: one name a class.
            templates: prompts, which a backbone without a text tower does not need.

        Returns:
            `(embed_dim, classes)` in fp32.

        Raises:
            UserError: there is neither, or the head that was given is of other classes.
        """
        if self.has_text or self.class_head is None:
            return self.zero_shot_head(classnames, templates)
        found = self.class_head.check(self.embed_dim, classnames, self.class_head.weights_sha256)
        return found.matrix.to(self.device)

    def classifier(self) -> tuple[Float[Tensor, "embed_dim classes"], Float[Tensor, " classes"]]:
        """The model's own linear classifier of embeddings that are not normalised.

        Returns:
            `(embed_dim, classes)` and `(classes,)` in fp32.

        Raises:
            UserError: it has none.
        """
        found = self.family.classifier()
        if found is None:
            raise UserError(f"'{self.name}' has no classifier of its own")
        bias = torch.zeros(found.out_features) if found.bias is None else found.bias
        return found.weight.detach().float().T, bias.detach().float()

    @property
    def tokenizer(self) -> Any:
        """Of a backbone with a text tower."""
        raise self._no_text("it has no tokenizer")

    def encode_text(self, texts: Any) -> Float[Tensor, "texts embed_dim"]:
        """Of a backbone with a text tower."""
        raise self._no_text("it cannot embed texts")

    def embed_names(self, *args: Any, **kwargs: Any) -> Float[Tensor, "names embed_dim"]:
        """Of a backbone with a text tower."""
        raise self._no_text("it cannot embed names")

    def zero_shot_head(self, *args: Any, **kwargs: Any) -> Float[Tensor, "embed_dim classes"]:
        """Of a backbone with a text tower."""
        raise self._no_text(
            "there are no zero-shot classes (`python -m clt_lightning probe --run ...` learns a head from labels)"
        )

    def zero_shot_doubts(self, *args: Any, **kwargs: Any) -> list[str]:
        """Of a backbone with a text tower."""
        raise self._no_text("there are no zero-shot classes")

    def _no_text(self, so: str) -> UserError:
        return UserError(f"'{self.name}' has no text tower: {so}")
