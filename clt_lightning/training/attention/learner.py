"""What learns to stand in the place of attention: its part of a step, and what it begins with.

The same beside a transcoder and alone; `UnitsLearner` and `AutoencoderLearner` (`autoencoder.py`, and `heads.py` of the
heads' outputs) are its kinds.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.interventions.attention import AttentionSites, AttentionWatch, read_attention
from clt_lightning.interventions.replacement import check_attention_fit
from clt_lightning.training.attention.config import AttentionConfig
from clt_lightning.training.batches import as_batch
from clt_lightning.training.losses.reconstruction import normalized_error
from clt_lightning.training.settings import TokensConfig
from clt_lightning.transcoder import ActivationStatistics, StatisticsAccumulator
from clt_lightning.transcoder.attention import AnyAttention, AttentionOutput, at_heads


class AttentionLearner(nn.Module):
    """Units, or an autoencoder, in training, with what a checkpoint must hold beside them.

    Args:
        clip: the backbone.
        attention: what is trained, in place.
        config: the settings.
        seed: of the first weights.

    Attributes:
        attention: the units, or the autoencoder.
        y_var: `(layers,)` total variance of `attn_out`: the scale of the errors.
        images_since_fired: `(layers, F)` int64.
        norms: `(layers, F)` of what each writes, which training keeps: 1 of new ones; 0 before `prepare`.

    Raises:
        UserError: what does not fit the backbone.
    """

    attention: AnyAttention
    y_var: Tensor
    images_since_fired: Tensor
    norms: Tensor

    def __init__(self, clip: Backbone, attention: AnyAttention, config: AttentionConfig, seed: int) -> None:
        super().__init__()
        check_attention_fit(clip, attention)
        self.attention, self.config, self.seed = attention.train(), config, seed
        self.register_buffer("y_var", torch.ones(attention.n_layers))
        self.register_buffer("images_since_fired", torch.zeros(attention.n_layers, attention.n_features).long())
        self.register_buffer("norms", torch.zeros(attention.n_layers, attention.n_features))

    # -- what the kinds differ in ------------------------------------------------------------------------------------

    @abstractmethod
    def rebuild(
        self, clip: Backbone, sites: AttentionSites, generator: torch.Generator
    ) -> tuple[AttentionOutput, Tensor | None]:
        """What is made of some whole images; and how badly those that stopped firing rebuild what the others leave
        over, on the scale of the reconstruction: None where none have.
        """

    @abstractmethod
    def moments(self, sites: AttentionSites) -> list[tuple[Tensor, Tensor]]:
        """Tensors whose moments are wanted, in pairs: what is read and what is rebuilt; with `attn_out` in the last."""

    @abstractmethod
    def normalize(self, statistics: ActivationStatistics) -> None:
        """Sets the scales, from the moments of what is read and what is rebuilt."""

    @abstractmethod
    def start(self, clip: Backbone, images: Sequence[Tensor]) -> None:
        """First directions, from the first training images."""

    @abstractmethod
    def written_norms(self) -> Tensor:
        """`(layers, F)`: norms of what each writes."""

    @abstractmethod
    def after_step(self) -> None:
        """After an optimizer's step: what each writes keeps its norm."""

    # -- a step ------------------------------------------------------------------------------------------------------

    @property
    def reads_heads(self) -> bool:
        """Whether `AttentionSites` must have the heads' outputs."""
        return at_heads(self.attention)

    @property
    def dead(self) -> Tensor:
        """`(layers, F)` bool: those that have stopped firing."""
        return self.images_since_fired >= self.config.dead_after

    def losses(
        self, clip: Backbone, sites: AttentionSites, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], AttentionOutput]:
        """Parts of the loss on some whole images, in units of the variance of each layer's `attn_out`.

        Args:
            clip: the backbone.
            sites: of the images.
            generator: of tokens that are drawn, on the CPU.

        Returns:
            `attention`: the mean over layers of the normalised error; `attention_auxk`, where some are dead: with its
            weight. And the output.
        """
        out, auxiliary = self.rebuild(clip, sites, generator)
        y, y_hat = sites.y.flatten(1, 2), out.y_hat.flatten(1, 2)
        parts = {"attention": normalized_error(y, y_hat, self.y_var).mean()}
        if auxiliary is not None:
            parts["attention_auxk"] = self.config.auxk * auxiliary
        return parts, out

    @torch.no_grad()
    def count_fired(self, out: AttentionOutput, images: int, processes: int = 1, replicas: int = 1) -> None:
        """Counts a step's images.

        Args:
            out: of this process's images.
            images: how many.
            processes: that train together.
            replicas: how many of them see images of their own.
        """
        fired = torch.zeros_like(self.images_since_fired, dtype=torch.uint8)
        for layer in range(len(fired)):
            pairs, values = out.codes.layer(layer)
            fired[layer, pairs.features[values != 0]] = 1
        if processes > 1:
            dist.all_reduce(fired, op=dist.ReduceOp.MAX)
        self.images_since_fired += images * replicas
        self.images_since_fired.masked_fill_(fired.bool(), 0)

    @torch.no_grad()
    def average_statistics(self, processes: int) -> None:
        """Each process's activation follows its own batches (BatchTopK the cut): one for all."""
        if processes > 1:
            for buffer in self.attention.activation.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= processes

    @property
    def is_prepared(self) -> bool:
        """Whether `prepare` was called, in this run or in the one of the checkpoint."""
        return bool(self.norms.any())

    @torch.no_grad()
    def prepare(self, clip: Backbone, loader: Iterable[Any], tokens: int, processes: int = 1) -> None:
        """Scales, then first directions, from the first training images; the same on all processes.

        What is trained already keeps what it makes: of it the scales alone are set.

        Args:
            clip: the backbone.
            loader: of training batches.
            tokens: that the scales are estimated from, of all processes together.
            processes: that train together, on different images.
        """
        attention, wanted = self.attention, -(-tokens // processes)
        nothing = AttentionWatch(clip, self.reads_heads).sites()
        sums = [StatisticsAccumulator(len(x), x.shape[-1], x.device, y.shape[-1]) for x, y in self.moments(nothing)]
        images = []
        with Progress("normalisation of attention", wanted, "tokens") as bar:
            for raw in loader:
                batch = as_batch(raw)["image"].to(self.y_var.device)
                pairs = self.moments(read_attention(clip, batch, self.reads_heads))
                for one, (x, y) in zip(sums, pairs):
                    one.update(x.flatten(1, 2).float(), y.flatten(1, 2).float())
                images.append(batch)
                bar.to(min(int(sums[0].n), wanted))
                if int(sums[0].n) >= wanted:
                    break
        if processes > 1:
            for total in (total for one in sums for total in one.sums()):
                dist.all_reduce(total)
        statistics, is_trained = [one.result() for one in sums], bool(attention.normalized)
        self.normalize(statistics[0])
        added = statistics[-1].y_var
        self.y_var.copy_(torch.where(added > 0, added, 1.0))
        if is_trained:
            self.norms.copy_(self.written_norms())
        else:
            self.start(clip, images)
            self.norms.fill_(1.0)
        if processes > 1:  # where they start: at what the first process's images show
            for tensor in attention.state_dict().values():
                dist.broadcast(tensor, 0)


def refuse_part_images(tokens: TokensConfig) -> None:
    """Whether settings keep all tokens of an image together.

    Raises:
        UserError: they do not.
    """
    asked = {"set": tokens.set != "all", "per_image": tokens.per_image is not None}
    asked |= {"buffer": bool(tokens.buffer), "max_tokens_per_chunk": tokens.max_tokens_per_chunk is not None}
    for name, wrong in asked.items():
        if wrong:
            raise UserError(
                f"tokens.{name}={getattr(tokens, name)}: sparse attention reads every position of an image at every "
                f"other, so that a step needs whole images: leave tokens.{name} out, and take fewer images in a batch"
            )


def active_codes(out: AttentionOutput) -> Tensor:
    """`(layers,)`: active units, or features, at a position, on average."""
    counts = [(out.codes.layer(i)[1] != 0).sum() for i in range(out.codes.n_layers)]
    return torch.stack(counts) / max(1, out.codes.n_tokens)
