"""What sparse attention learns in a step, and what it begins with: the same beside a transcoder and alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.interventions.attention import (
    AttentionSites,
    check_attention_fit,
    read_attention,
    rebuild_attention,
)
from clt_lightning.training.attention.config import AttentionConfig
from clt_lightning.training.attention.start import start_units
from clt_lightning.training.batches import as_batch
from clt_lightning.training.losses.reconstruction import normalized_error
from clt_lightning.training.settings import TokensConfig
from clt_lightning.transcoder import StatisticsAccumulator
from clt_lightning.transcoder.attention import AttentionOutput, SparseAttention


class AttentionLearner(nn.Module):
    """Units in training, with what a checkpoint must hold beside them.

    Args:
        clip: the backbone.
        attention: the units, which are trained in place; or the settings that make them.
        seed: of the first weights.

    Attributes:
        attention: the units.
        config: the settings, or those of the units that were given.
        y_var: `(layers,)` total variance of `attn_out`: the scale of the errors.
        images_since_fired: `(layers, F)` int64.
        norms: `(layers, F)` of what units write, which training keeps: 1 of new units; 0 before `prepare`.

    Raises:
        UserError: units that do not fit the backbone.
    """

    y_var: Tensor
    images_since_fired: Tensor
    norms: Tensor

    def __init__(self, clip: Backbone, attention: SparseAttention | AttentionConfig, seed: int) -> None:
        super().__init__()
        if isinstance(attention, AttentionConfig):
            self.config = config = attention
            n_heads = clip.attention_parts(0).n_heads if config.n_heads is None else config.n_heads
            attention = SparseAttention(
                *(clip.n_layers, clip.d_model, config.n_features, n_heads, config.activation, config.d_qk), seed=seed
            )
        else:
            own = attention.n_heads if attention.d_qk is not None else None
            self.config = AttentionConfig(attention.n_features, attention.activation, attention.d_qk, own)
        check_attention_fit(clip, attention)
        self.attention = attention.train()
        self.seed = seed
        self.register_buffer("y_var", torch.ones(attention.n_layers))
        self.register_buffer("images_since_fired", torch.zeros(attention.n_layers, attention.n_features).long())
        self.register_buffer("norms", torch.zeros(attention.n_layers, attention.n_features))

    @property
    def dead(self) -> Tensor:
        """`(layers, F)` bool: units that have stopped firing."""
        return self.images_since_fired >= self.config.dead_after

    def losses(self, clip: Backbone, sites: AttentionSites) -> tuple[dict[str, Tensor], AttentionOutput]:
        """Parts of the loss on some whole images, in units of the variance of each layer's `attn_out`.

        Returns:
            `attention`: the mean over layers of the normalised error; `attention_auxk`, where units are dead: with its
            weight. And the output.
        """
        out = rebuild_attention(clip, self.attention, sites)
        y, y_hat = sites.y.flatten(1, 2), out.y_hat.flatten(1, 2)
        parts = {"attention": normalized_error(y, y_hat, self.y_var).mean()}
        dead = self.dead
        # one look at the device for all layers
        silent = [layer for layer, some in enumerate(dead.any(1).tolist()) if some] if self.config.auxk else []
        if silent:
            rests = (y.to(y_hat) - y_hat).detach()
            found = [self._auxiliary(layer, out, rests[layer], dead[layer]) for layer in silent]
            parts["attention_auxk"] = self.config.auxk * torch.stack(found).sum() / len(y)
        return parts, out

    def _auxiliary(self, layer: int, out: AttentionOutput, rest: Tensor, dead: Tensor) -> Tensor:
        """How badly the units that stopped firing rebuild what the others leave over."""
        units, index = self.attention, dead.nonzero()[:, 0]
        pre = out.pre[layer][:, index]
        top = torch.topk(pre, min(len(index), max(1, units.d_model // 2)), dim=1)
        codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        made = codes @ units.W_dec[layer][index] * units.y_scale[layer]
        return normalized_error(rest[None], made[None], self.y_var[layer : layer + 1])[0]

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

    def after_step(self) -> None:
        """After an optimizer's step: what units write keeps its norm."""
        self.attention.hold_decoders(self.norms)

    @torch.no_grad()
    def prepare(self, clip: Backbone, loader: Iterable[Any], tokens: int, processes: int = 1) -> None:
        """Scales, then first directions of the units, from the first training images; the same on all processes.

        Units that are trained already keep what they make: of them the scales alone are set.

        Args:
            clip: the backbone.
            loader: of training batches.
            tokens: that the scales are estimated from, of all processes together.
            processes: that train together, on different images.
        """
        units, wanted = self.attention, -(-tokens // processes)
        sums, images = StatisticsAccumulator(units.n_layers, units.d_model, self.y_var.device), []
        with Progress("normalisation of attention", wanted, "tokens") as bar:
            for raw in loader:
                batch = as_batch(raw)["image"].to(self.y_var.device)
                found = read_attention(clip, batch)
                sums.update(found.x.flatten(1, 2).float(), found.y.flatten(1, 2).float())
                images.append(batch)
                bar.to(min(int(sums.n), wanted))
                if int(sums.n) >= wanted:
                    break
        if processes > 1:
            for total in sums.sums():
                dist.all_reduce(total)
        statistics, are_trained = sums.result(), bool(units.normalized)
        units.normalize(statistics)
        self.y_var.copy_(torch.where(statistics.y_var > 0, statistics.y_var, 1.0))
        if are_trained:
            self.norms.copy_(units.W_dec.norm(dim=-1))
        else:
            start_units(clip, units, images, self.seed)
            self.norms.fill_(1.0)
        if processes > 1:  # where they start: at what the first process's images show
            for tensor in units.state_dict().values():
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
    """`(layers,)`: active units at a query position, on average."""
    counts = [(out.codes.layer(i)[1] != 0).sum() for i in range(out.codes.n_layers)]
    return torch.stack(counts) / max(1, out.codes.n_tokens)
