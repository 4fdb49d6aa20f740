"""What a step reads: the activations of a batch at the transcoder's sites, and the tokens drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import lightning
import torch
from torch import Tensor

from clt_lightning import compat
from clt_lightning.backbone import Activations, random_positions
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.attention import AttentionSites, AttentionWatch
from clt_lightning.training.attention.learner import AttentionLearner
from clt_lightning.training.losses.cascade import Clean, capture_clean
from clt_lightning.training.settings import LossConfig, TokensConfig
from clt_lightning.training.shared_forward import SharedForward
from clt_lightning.transcoder import CrossLayerTranscoder

T = TypeVar("T")


class Capturing(lightning.LightningModule):
    """A backbone and a transcoder on its sites, in a process among others that see other batches."""

    clip: FrozenCLIP  # other backbones have the same methods; those of texts refuse
    transcoder: CrossLayerTranscoder
    units: AttentionLearner | None
    loss_config: LossConfig
    tokens_config: TokensConfig
    seed: int

    forwards: SharedForward | None = None
    """Where several modules learn from the same batches: the forwards that they share."""

    def _capture(self, batch: dict[str, Any], positions: Tensor | None) -> Activations:
        images, blocks, names = batch["image"], self._blocks, self._names
        return self._forward(
            ("sites", blocks, names),
            (images, positions),
            lambda: self.clip.capture(images, blocks, positions=positions, sites=names),
        )

    def _capture_clean(self, batch: dict[str, Any], positions: Tensor | None) -> tuple[Activations, Clean]:
        images, names = batch["image"], self._names
        return self._forward(
            ("clean", names), (images, positions), lambda: capture_clean(self.clip, images, positions, names)
        )

    def _capture_with_attention(
        self, batch: dict[str, Any], clean: bool
    ) -> tuple[Activations, Clean | None, AttentionSites]:
        """The same of whole images, and from the same forward what the attention layers read and add.

        Args:
            batch: of images.
            clean: whether the cascade wants to know the untouched model.
        """
        images, blocks, names = batch["image"], self._blocks, self._names
        with_heads = self.units is not None and self.units.reads_heads

        def forward() -> tuple[Activations, Clean | None, AttentionSites]:
            with AttentionWatch(self.clip, with_heads).active() as heads:
                if clean:
                    acts, found = capture_clean(self.clip, images, None, names)
                    return acts, found, heads.sites()
                acts = self.clip.capture(images, blocks, sites=names, stop=False)
                return acts, None, heads.sites()

        return self._forward(("with attention", clean, with_heads, blocks, names), (images,), forward)

    def _forward(self, kind: Hashable, tensors: tuple[Tensor | None, ...], forward: Callable[[], T]) -> T:
        return forward() if self.forwards is None else self.forwards(kind, tensors, forward)

    def _marks(self, batch: dict[str, Any], positions: Tensor | None, n_tokens: int) -> Tensor:
        """`(tokens, 2 or 3)` int64, for terms of the loss: the label of each token's image, the token's place in it.

        Where a term asks for it, also the image's data set.

        Raises:
            UserError: the batch has no labels, or no `study`, and a term needs them.
        """
        n_images = len(batch["image"])
        each = n_tokens // max(n_images, 1)
        if positions is None:
            positions = torch.arange(each, device=self.device).expand(n_images, -1)
        labels = batch.get("label")
        if self.loss_config.needs("labels") and (labels is None or bool((labels < 0).all())):
            term = next(term for term in self.loss_config.terms() if "labels" in term.needs)
            own = term is self.loss_config.prototype
            off = "set model.loss.prototype.coefficient to 0" if own else "take the term out of model.loss.extra"
            raise UserError(
                f"the loss's term {term.name} needs the class of each image, and these data have no labels: train on "
                f"data with labels (a batch's 'label': whole numbers), or {off}"
            )
        studies = batch.get("study")
        if studies is None and self.loss_config.needs("studies"):
            term = next(term for term in self.loss_config.terms() if "studies" in term.needs)
            raise UserError(
                f"the loss's term {term.name} needs to know the data set of each image, and these data are one set: "
                "train on several (data.class_path Studies, docs/data.md), or take the term out of model.loss.extra"
            )
        if labels is None:
            labels = torch.full((n_images,), -1, device=self.device)
        columns = [labels[:, None].expand(-1, each), positions]
        if studies is not None and self.loss_config.needs("studies"):
            columns.append(studies[:, None].expand(-1, each))
        return torch.stack([column.to(self.device).long() for column in columns], 2).flatten(0, 1)

    def _check_prototype(self) -> None:
        """Whether a step has the [CLS] tokens that the prototype term reads.

        Raises:
            UserError: the backbone has none, or the step leaves them out.
        """
        if not self.loss_config.prototype.coefficient or self.transcoder.sites.read == "final":
            return
        if not self.clip.has_cls:
            raise UserError(
                f"model.loss.prototype reads the codes of [CLS], and the backbone '{self.clip.name}' has none"
            )
        chosen = self.tokens_config.set
        if chosen not in ("cls", "all"):
            raise UserError(
                f"model.loss.prototype reads the codes of [CLS], and model.tokens.set is {chosen}: take cls or all"
            )

    def _sites(self, acts: Activations) -> tuple[Tensor, Tensor]:
        """What the encoders read and what the decoders rebuild, standardised where the transcoder does that."""
        x = self.transcoder.standardised(acts.x)
        return x, x if acts.y is acts.x else acts.y

    @property
    def _names(self) -> tuple[str, str]:
        return str(self.transcoder.sites.read), str(self.transcoder.sites.write)

    @property
    def _blocks(self) -> tuple[int, ...]:
        return self.transcoder.sites.resolve(self.clip.n_layers, self.clip.name)

    def _positions(self, n_images: int, generator: torch.Generator) -> Tensor | None:
        if self.transcoder.sites.read == "final":
            return None
        span, wanted = self.clip.tokens.span(self.tokens_config.set), self.tokens_config.per_image
        size = span.stop - span.start
        if wanted is not None and wanted < size:
            result: Tensor | None = random_positions(n_images, size, wanted, generator) + span.start
            return result
        return None if size == self.clip.n_positions else torch.arange(span.start, span.stop).expand(n_images, -1)

    def _cls_rows(self, positions: Tensor | None, n_tokens: int, marks: Tensor | None = None) -> Tensor | None:
        """Which of a step's tokens are [CLS], `(n,)` int64; None where the transcoder does not ask.

        Args:
            positions: of the batch's tokens, as `_positions` drew them.
            n_tokens: of the step.
            marks: of tokens that a buffer has mixed.
        """
        if self.transcoder.cls_weight == 1:
            return None
        if marks is not None:
            return (marks[:, 1] == 0).nonzero().flatten()
        if positions is None:
            return torch.arange(0, n_tokens, self.clip.n_positions)
        return (positions.cpu().flatten() == 0).nonzero().flatten()

    def _generator(self, index: int) -> torch.Generator:
        """A generator that depends on seed, batch and place alone, so that a resumed run draws the same."""
        generator = torch.Generator()
        generator.manual_seed(hash((self.seed, index, self._data_place()[0])) & 0x7FFF_FFFF_FFFF_FFFF)
        return generator

    def _data_place(self) -> tuple[int, int]:
        """Which of a step's batches is this process's, and how many different ones there are.

        Processes that share the features of a transcoder share the batch as well.
        """
        trainer = compat.trainer_of(self)
        told = None if trainer is None else getattr(trainer.strategy, "distributed_sampler_kwargs", None)
        return (int(told["rank"]), int(told["num_replicas"])) if told else (0, 1)

    @property
    def _max_steps(self) -> int:
        trainer = compat.trainer_of(self)
        return 0 if trainer is None else trainer.max_steps
