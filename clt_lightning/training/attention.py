"""AttentionModule: trains sparse attention on the attention layers of a frozen backbone, for Lightning."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.backbone.make import AnyBackbone, make_backbone, spec_of
from clt_lightning.core import seeds
from clt_lightning.core.arguments import whole
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.interventions.attention import check_attention_fit, patterns_of
from clt_lightning.training.attention_start import start_units
from clt_lightning.training.batches import as_batch
from clt_lightning.training.optim import AdamW
from clt_lightning.training.schedule import lr_factor
from clt_lightning.training.settings import ScheduleConfig, TokensConfig, from_plain, to_plain
from clt_lightning.transcoder import Activation, StatisticsAccumulator, TopK
from clt_lightning.transcoder.activations import from_config
from clt_lightning.transcoder.attention import AttentionOutput, SparseAttention

SITES = ("attn_in", "attn_out")

# the module's own hook serves every loader, a data module's too
warnings.filterwarnings("ignore", "You have overridden `on_before_batch_transfer` in `LightningModule`")


def default_optimizer(params: Iterable[Any]) -> torch.optim.Optimizer:
    """Fused Adam without weight decay."""
    return AdamW(params, lr=1e-3)


class AttentionModule(lightning.LightningModule):
    """Trains sparse attention to rebuild what every attention layer of a backbone adds, from what it reads.

    Batches are whole images: dicts with `image`, tuples `(image, label)`, or images alone, from any loader. Logged are
    `train/fvu` and `train/l0` (and `val/...`), and the same by layer as `train/fvu/layer_00`.

    Args:
        backbone: the frozen backbone, or what `CLTModule` takes for one.
        attention: units that are trained in place; None makes them from the next four.
        n_features: units of a layer, a multiple of the model's heads; None: 8 x d_model.
        activation: which units are active at a query position; None: `TopK(32)`.
        d_qk: size of own queries and keys; None: the model's own patterns, frozen.
        n_heads: with `d_qk`, how many patterns of their own there are; None: as many as the model has.
        optimizer: called with the parameters.
        schedule: learning rate over the run.
        tokens: of use for `statistics` alone: attention mixes all tokens of an image.
        auxk: weight of the term by which units that have stopped firing learn to rebuild what is left over (Gao et al.
            2024); 0 turns it off.
        dead_after: images after which a unit that did not fire counts as stopped.
        seed: of the first weights; None takes that of `seed_everything`.

    Attributes:
        attention: the units.

    Raises:
        UserError: settings that keep a part of an image's tokens, or units that do not fit the backbone.
    """

    images_since_fired: Tensor

    def __init__(
        self,
        backbone: AnyBackbone,
        attention: SparseAttention | None = None,
        *,
        n_features: int | None = None,
        activation: Activation | dict[str, Any] | None = None,
        d_qk: int | None = None,
        n_heads: int | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: ScheduleConfig | dict[str, Any] | None = None,
        tokens: TokensConfig | dict[str, Any] | None = None,
        auxk: float = 1 / 32,
        dead_after: int = 2000,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.clip: Backbone = make_backbone(backbone)
        self.tokens_config = from_plain(TokensConfig, tokens)
        self.schedule_config = from_plain(ScheduleConfig, schedule)
        refuse_part_images(self.tokens_config)
        self.auxk, self.dead_after = float(auxk), whole("dead_after", dead_after, 1)
        self.seed = seeds.resolve(seed)
        self.optimizer_factory = optimizer
        if attention is None:
            made = from_config(activation) if isinstance(activation, dict) else activation or TopK(32)
            n_heads = self.clip.attention_parts(0).n_heads if n_heads is None else n_heads
            n_features = 8 * self.clip.d_model if n_features is None else n_features
            attention = SparseAttention(
                self.clip.n_layers, self.clip.d_model, n_features, n_heads, made, d_qk, seed=self.seed
            )
        check_attention_fit(self.clip, attention)
        self.attention = attention.train()
        form = attention.config()
        # plain values only: a checkpoint must load with weights_only=True
        self.save_hyperparameters(
            {
                "backbone": spec_of(self.clip),
                "n_features": form["n_features"],
                "activation": form["activation"],
                "d_qk": form["d_qk"],
                "n_heads": form["n_heads"],
                "schedule": to_plain(self.schedule_config),
                "tokens": to_plain(self.tokens_config),
                "auxk": self.auxk,
                "dead_after": self.dead_after,
                "seed": self.seed,
            }
        )
        self.register_buffer("images_since_fired", torch.zeros(attention.n_layers, attention.n_features).long())
        self.validation: Sums | None = None

    # -- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None and getattr(datamodule, "transform", "absent") is None:
            datamodule.transform = self.clip.preprocess

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer_factory(self.attention.parameters())
        steps = self.trainer.max_steps
        if steps <= 0:
            found = self.trainer.estimated_stepping_batches
            steps = int(found) if math.isfinite(found) else -1
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(self.schedule_config, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> dict[str, Any]:
        return as_batch(batch)

    def on_train_start(self) -> None:
        if not bool(self.attention.normalized):
            self._prepare()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        x, y, out = self._run(batch)
        errors, spread = squares(y - out.y_hat), squares(y - y.mean((1, 2), keepdim=True))
        fvu = errors / spread.clamp(min=1e-30)
        loss = fvu.mean()
        pairs = [out.codes.layer(layer) for layer in range(len(x))]
        with torch.no_grad():
            fired = torch.zeros_like(self.images_since_fired, dtype=torch.bool)
            for layer, (p, values) in enumerate(pairs):
                fired[layer, p.features[values != 0]] = True
            dead = self.images_since_fired >= self.dead_after
            self.images_since_fired += len(batch["image"])
            self.images_since_fired.masked_fill_(fired, 0)
        if self.auxk:
            parts = [self._auxiliary(layer, out, y[layer], dead[layer]) for layer in range(len(x)) if dead[layer].any()]
            if parts:
                loss = loss + self.auxk * torch.stack(parts).sum() / len(x)
        if not torch.isfinite(loss):
            raise UserError(f"step {self.global_step}: the loss is {loss.item()}: lower the learning rate")
        if (self.global_step + 1) % max(1, self.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self._log("train", fvu.detach(), active_codes(out), dead.float().mean())
        return loss

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.attention.unit_decoders()

    def on_validation_epoch_start(self) -> None:
        self.validation = Sums(self.attention)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        assert self.validation is not None
        with self.attention.activation.not_tracking():
            _, y, out = self._run(batch)
        self.validation.update(y, out)

    def on_validation_epoch_end(self) -> None:
        assert self.validation is not None
        fvu, l0 = self.validation.result(self.trainer.world_size > 1)
        self._log("val", fvu, l0, None)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _run(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, AttentionOutput]:
        x, y, patterns = read_attention(self.clip, self.attention, batch["image"])
        return x, y, self.attention(x, patterns)

    def _auxiliary(self, layer: int, out: AttentionOutput, y: Tensor, dead: Tensor) -> Tensor:
        """How badly the units that stopped firing rebuild what the others leave over."""
        units = self.attention
        rest = ((y - out.y_hat[layer].detach()) / units.y_scale[layer]).flatten(0, 1)
        index = dead.nonzero()[:, 0]
        pre = out.pre[layer][:, index]
        top = torch.topk(pre, min(len(index), units.d_model // 2), dim=1)
        codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        error = rest - codes @ units.W_dec[layer][index]
        return error.square().sum() / rest.square().sum().clamp(min=1e-30)

    @torch.no_grad()
    def _prepare(self) -> None:
        """Scales, then first directions of the units, from the first training images."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        loader: Any = self.trainer.train_dataloader if datamodule is None else datamodule.train_dataloader()
        units, wanted = self.attention, self.tokens_config.statistics
        sums, images = StatisticsAccumulator(units.n_layers, units.d_model, self.device), []
        with Progress("normalisation", wanted, "tokens") as bar:
            for raw in loader:
                batch = as_batch(raw)["image"].to(self.device)
                found = self.clip.read(batch, SITES)
                sums.update(found["attn_in"].float(), found["attn_out"].float())
                images.append(batch)
                bar.to(min(int(sums.n), wanted))
                if int(sums.n) >= wanted:
                    break
        units.normalize(sums.result())
        start_units(self.clip, units, images, self.seed)
        if self.trainer.world_size > 1:
            for tensor in units.state_dict().values():
                dist.broadcast(tensor, 0)

    def _log(self, split: str, fvu: Tensor, l0: Tensor, dead: Tensor | None) -> None:
        rows = {"fvu": fvu.float(), "l0": l0.float()}
        self.log_dict({f"{split}/{name}": row.mean() for name, row in rows.items()}, prog_bar=True)
        self.log_dict({f"{split}/{name}/layer_{i:02d}": v for name, row in rows.items() for i, v in enumerate(row)})
        if dead is not None:
            self.log(f"{split}/dead", dead)


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


@torch.no_grad()
def read_attention(
    clip: Backbone, attention: SparseAttention, images: Tensor
) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """What attention layers read and add, and how they attend, in the units' type.

    Args:
        clip: the backbone.
        attention: the units.
        images: `(images, 3, size, size)`.

    Returns:
        `attn_in` and `attn_out`, `(layers, images, positions, d_model)`, and the model's patterns, one a layer; None
        where the units have their own.
    """
    found = clip.read(images, SITES)
    wide = [found[site].unflatten(1, (len(images), clip.n_positions)) for site in SITES]
    patterns = None
    if attention.d_qk is None:
        pattern, patterns = patterns_of(clip, attention), []
        for layer, x in enumerate(wide[0]):
            made = pattern(layer, x)
            assert made is not None
            patterns.append(made)
    kind = attention.W_enc.dtype
    return wide[0].to(kind), wide[1].to(kind), patterns


def squares(x: Tensor) -> Tensor:
    """`(layers,)`: sums of squares of `(layers, ...)`."""
    return x.square().flatten(1).sum(1)


def active_codes(out: AttentionOutput) -> Tensor:
    """`(layers,)`: active units at a query position, on average."""
    counts = [(out.codes.layer(i)[1] != 0).sum() for i in range(out.codes.n_layers)]
    return torch.stack(counts) / max(1, out.codes.n_tokens)


class Sums:
    """FVU and L0 of a split by layer, in float64.

    Args:
        attention: the units; sums live where they are.
    """

    def __init__(self, attention: SparseAttention) -> None:
        # measured from about the mean: a difference of huge sums would lose all digits; the same on all processes
        self.origin = (attention.b_dec.detach() * attention.y_scale[:, None]).double()
        self.total = torch.zeros_like(self.origin)
        self.error, self.square, self.active = (torch.zeros_like(self.origin[:, 0]) for _ in range(3))
        self.n = torch.zeros_like(self.origin[0, :1])

    @torch.no_grad()
    def update(self, y: Tensor, out: AttentionOutput) -> None:
        """Takes in `y (layers, images, positions, d_model)` and what was made of it."""
        wide = y.double()
        self.error += squares(wide - out.y_hat.double())
        wide = wide - self.origin[:, None, None]
        self.square += squares(wide)
        self.total += wide.sum((1, 2))
        tokens = y.shape[1] * y.shape[2]
        self.active += active_codes(out) * tokens
        self.n += tokens

    def result(self, over_processes: bool = False) -> tuple[Tensor, Tensor]:
        """`(layers,)` FVU and L0."""
        parts = [self.error, self.square, self.active, self.total, self.n]
        if over_processes:
            for part in parts:
                dist.all_reduce(part)
        spread = self.square - self.total.square().sum(1) / self.n
        return self.error / spread.clamp(min=1e-300), self.active / self.n
