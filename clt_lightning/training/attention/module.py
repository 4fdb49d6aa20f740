"""AttentionModule: trains what stands in the place of attention alone, for Lightning."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import lightning
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.backbone.make import AnyBackbone, make_backbone, spec_of
from clt_lightning.core import seeds
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.attention import AttentionSites, read_attention, rebuild_attention
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.training.attention.config import AttentionConfig
from clt_lightning.training.attention.learner import active_codes, refuse_part_images
from clt_lightning.training.attention.make import attention_learner
from clt_lightning.training.batches import as_batch
from clt_lightning.training.losses.cascade import CascadeConfig, cascade_parts
from clt_lightning.training.losses.reconstruction import normalized_error
from clt_lightning.training.optim import AdamW
from clt_lightning.training.schedule import lr_factor
from clt_lightning.training.settings import ScheduleConfig, TokensConfig, from_plain, to_plain
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention, AttentionOutput

# the module's own hook serves every loader, a data module's too
warnings.filterwarnings("ignore", "You have overridden `on_before_batch_transfer` in `LightningModule`")


def default_optimizer(params: Iterable[Any]) -> torch.optim.Optimizer:
    """Fused Adam without weight decay."""
    return AdamW(params, lr=1e-3)


class AttentionModule(lightning.LightningModule):
    """Trains sparse attention, or an autoencoder, to rebuild what every attention layer of a backbone adds.

    Alone: `CLTModule(..., attention=...)` trains it beside a transcoder. Batches are whole images: dicts with `image`,
    tuples `(image, label)`, or images alone, from any loader. Logged are `train/fvu` of a step's images, in units of
    the variance that was estimated at the start, `train/l0`, both by layer as well (`train/fvu/layer_00`), and
    `train/dead`; `callbacks.AttentionReconstruction` measures a validation split.

    Args:
        backbone: the frozen backbone, or what `CLTModule` takes for one.
        attention: units, or an autoencoder, that are trained in place, or the settings that make them; None: 8 x
            d_model units per layer.
        optimizer: called with the parameters.
        schedule: learning rate over the run.
        tokens: of use for `statistics` alone: attention mixes all tokens of an image.
        transcoder: a trained transcoder of the backbone's MLPs, which stays as it is: the units then also learn from
            the cascade with every MLP and every attention replaced; None: from the untouched model alone.
        cascade: the cascade's terms, with a transcoder.
        seed: of the first weights; None takes that of `seed_everything`.

    Attributes:
        attention: the units.

    Raises:
        UserError: settings that keep a part of an image's tokens, or units that do not fit the backbone.
    """

    def __init__(
        self,
        backbone: AnyBackbone,
        attention: AnyAttention | AttentionConfig | dict[str, Any] | None = None,
        *,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: ScheduleConfig | dict[str, Any] | None = None,
        tokens: TokensConfig | dict[str, Any] | None = None,
        transcoder: CrossLayerTranscoder | None = None,
        cascade: CascadeConfig | dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.clip: Backbone = make_backbone(backbone)
        self.tokens_config = from_plain(TokensConfig, tokens)
        self.schedule_config = from_plain(ScheduleConfig, schedule)
        refuse_part_images(self.tokens_config)
        self.seed = seeds.resolve(seed)
        self.optimizer_factory = optimizer
        given = AttentionConfig(8 * self.clip.d_model) if attention is None else attention
        if isinstance(given, dict):
            given = from_plain(AttentionConfig, given)
        if isinstance(given, AttentionConfig) and not given.n_features:
            raise UserError("attention.n_features is 0: how many units per layer? A multiple of its heads")
        self.units = attention_learner(self.clip, given, self.seed)
        self.cascade_config = from_plain(CascadeConfig, cascade)
        if transcoder is not None and not transcoder.sites.is_mlp:
            raise UserError(
                f"AttentionModule: the cascade takes a transcoder of MLPs, this one rebuilds {transcoder.sites.write}"
            )
        if transcoder is not None:
            check_fit(self.clip, transcoder)
        self._beside = (transcoder,)  # a tuple: no part of this module, nor of its checkpoints
        # plain values only: a checkpoint must load with weights_only=True
        self.save_hyperparameters(
            {
                "backbone": spec_of(self.clip),
                "attention": to_plain(self.units.config),
                "schedule": to_plain(self.schedule_config),
                "tokens": to_plain(self.tokens_config),
                "cascade": to_plain(self.cascade_config),
                "seed": self.seed,
            }
        )

    @property
    def attention(self) -> AnyAttention:
        return self.units.attention

    # -- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None and getattr(datamodule, "transform", "absent") is None:
            datamodule.transform = self.clip.preprocess

    def configure_optimizers(self) -> OptimizerLRScheduler:
        try:
            optimizer = self.optimizer_factory(self.attention.parameters())
        except (ValueError, TypeError) as error:  # a rate below 0, or an argument that it does not take
            raise UserError(f"the optimizer of sparse attention: {error}") from error
        steps = self.trainer.max_steps
        if steps <= 0:
            found = self.trainer.estimated_stepping_batches
            steps = int(found) if math.isfinite(found) else -1
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(self.schedule_config, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> dict[str, Any]:
        return as_batch(batch)

    def on_train_start(self) -> None:
        for transcoder in self._beside:
            if transcoder is not None:
                transcoder.to(self.device)
        if not self.units.is_prepared:
            datamodule: Any = getattr(self.trainer, "datamodule", None)
            loader: Any = self.trainer.train_dataloader if datamodule is None else datamodule.train_dataloader()
            self.units.prepare(self.clip, loader, self.tokens_config.statistics, self.trainer.world_size)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        sites = read_attention(self.clip, batch["image"], self.units.reads_heads)
        generator = torch.Generator().manual_seed(hash((self.seed, self.global_step)) & 0x7FFF_FFFF_FFFF_FFFF)
        parts, out = self.units.losses(self.clip, sites, generator)
        parts |= self._cascade(batch["image"])
        loss = torch.stack(list(parts.values())).sum()
        processes = self.trainer.world_size
        dead = self.units.dead.float().mean()
        self.units.count_fired(out, len(batch["image"]), processes, processes)
        self.units.average_statistics(processes)
        if not torch.isfinite(loss):
            raise UserError(f"step {self.global_step}: the loss is {loss.item()}: lower the learning rate")
        if (self.global_step + 1) % max(1, self.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self._log(sites, out, dead)
        return loss

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.units.after_step()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """What the callbacks measure: `sites`, and what was made of them, `out`."""
        sites = read_attention(self.clip, batch["image"], self.units.reads_heads)
        with self.attention.activation.not_tracking():
            return {"sites": sites, "out": rebuild_attention(self.clip, self.attention, sites)}

    # -- inside ------------------------------------------------------------------------------------------------------

    def _cascade(self, images: Tensor) -> dict[str, Tensor]:
        """The cascade's parts of the loss; none before it begins, and without a transcoder."""
        config, (transcoder,) = self.cascade_config, self._beside
        strength = 0.0 if transcoder is None else config.strength(self.global_step, self.trainer.max_steps)
        if transcoder is None or not strength:
            return {}
        held = [p for p in transcoder.parameters() if p.requires_grad]
        for p in held:
            p.requires_grad_(False)
        try:
            found = cascade_parts(self.clip, transcoder, images[: config.images], config, None, self.attention)
        finally:
            for p in held:
                p.requires_grad_(True)
        return {name: strength * value for name, value in found.items()}

    @torch.no_grad()
    def _log(self, sites: AttentionSites, out: AttentionOutput, dead: Tensor) -> None:
        fvu = normalized_error(sites.y.flatten(1, 2), out.y_hat.flatten(1, 2), self.units.y_var)
        rows = {"fvu": fvu.float(), "l0": active_codes(out).float()}
        self.log_dict({f"train/{name}": row.mean() for name, row in rows.items()}, prog_bar=True)
        self.log_dict({f"train/{name}/layer_{i:02d}": v for name, row in rows.items() for i, v in enumerate(row)})
        self.log("train/dead", dead)
