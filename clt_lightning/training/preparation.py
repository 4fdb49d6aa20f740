"""Before the first step: the divided transcoder, the optimizer and its schedule, the normalisation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from clt_lightning.core.classes import check_loadable
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.core.say import say
from clt_lightning.parallel import ShardedTranscoder
from clt_lightning.training.assembly import transcoder_form
from clt_lightning.training.batches import as_batch
from clt_lightning.training.proximal import Proximal
from clt_lightning.training.schedule import lr_factor
from clt_lightning.training.settings import ParallelConfig, ScheduleConfig, TranscoderConfig
from clt_lightning.transcoder import StatisticsAccumulator


class Preparation(Proximal):
    """The hooks of Lightning that make things ready."""

    transcoder_config: TranscoderConfig
    schedule_config: ScheduleConfig
    parallel_config: ParallelConfig
    optimizer_factory: OptimizerCallable
    total_steps: int

    def setup(self, stage: str) -> None:
        """Gives the datamodule the backbone's image transform.

        Raises:
            UserError: fit was asked for with a part that could not be loaded again afterwards.
        """
        if stage == "fit":
            activation = self.transcoder.activation
            check_loadable(type(activation), activation.init_args(), "model.transcoder.activation")
            for index, term in enumerate(self.loss_config.extra):
                check_loadable(type(term), term.init_args(), f"model.loss.extra[{index}]")
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None and getattr(datamodule, "transform", "absent") is None:
            datamodule.transform = self.clip.preprocess

    def configure_model(self) -> None:
        """Makes this process's part of a transcoder that is divided over processes.

        Raises:
            UserError: the trainer's strategy divides nothing.
        """
        if self.parallel_config.feature == 1 or isinstance(self.transcoder, ShardedTranscoder):
            return
        shards = getattr(self.trainer.strategy, "shards", None)
        if shards is None or shards.size != self.parallel_config.feature:
            del self.transcoder  # it has no memory, which Lightning would move on its way out
            raise UserError(
                f"model.parallel.feature={self.parallel_config.feature} needs the strategy "
                "clt_lightning.parallel.strategy.FeatureParallel of the same number (the command line sets it)"
            )
        self.transcoder = ShardedTranscoder(
            shards, **transcoder_form(self.transcoder_config, self.clip), seed=self.seed
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        try:
            optimizer = self.optimizer_factory(self.transcoder.parameters())
            if self.units is not None:
                lr = float(optimizer.param_groups[0]["lr"]) * self.units.config.lr
                optimizer.add_param_group({"params": list(self.units.parameters()), "lr": lr})
        except (ValueError, TypeError) as error:  # a rate below 0, an argument or a shape that it does not take
            raise UserError(f"model.optimizer: {error}") from error
        for unreached in self.loss_config.never_reached(self.trainer.max_steps):
            rank_zero_warn(unreached)
        if self.trainer.max_steps > 0 or self.schedule_config.decay == "none":
            factor = lr_factor(self.schedule_config, self.trainer.max_steps)
        else:
            factor = self._factor_by_epochs
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _factor_by_epochs(self, step: int) -> float:
        """The learning rate's factor in a run of so many epochs, whose steps are known when training starts."""
        known = self.total_steps > 0
        config = self.schedule_config if known else dataclasses.replace(self.schedule_config, decay="none")
        return lr_factor(config, self.total_steps)(step)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> dict[str, Any]:
        return as_batch(batch)

    def on_train_start(self) -> None:
        trainer = self.trainer
        batches, epochs = trainer.num_training_batches, trainer.max_epochs
        self.total_steps = trainer.max_steps
        if self.total_steps <= 0 and epochs is not None and epochs > 0 and math.isfinite(batches):
            self.total_steps = epochs * -(-int(batches) // trainer.accumulate_grad_batches)
        if self.schedule_config.decay != "none" and self.schedule_config.decay_fraction > 0:
            lr_factor(self.schedule_config, self.total_steps)  # a decay without an end is said before the first step
        # a loader that was given to the trainer without its data module does not know the trainer's limits yet
        follow = getattr(trainer.train_dataloader, "follow", None)
        if follow is not None:
            follow(trainer)
        if not bool(self.transcoder.normalized):
            self._estimate_normalization()
        if self.units is not None and not self.units.is_prepared:
            datamodule = getattr(trainer, "datamodule", None)
            loader: Any = trainer.train_dataloader if datamodule is None else datamodule.train_dataloader()
            self.units.prepare(self.clip, loader, self.tokens_config.statistics, self._data_place()[1])
        self.attach_priors()

    @torch.no_grad()
    def _estimate_normalization(self) -> None:
        # a loader of its own: reading from the training loader would move its place in the data
        datamodule = getattr(self.trainer, "datamodule", None)
        loader: Any = self.trainer.train_dataloader if datamodule is None else datamodule.train_dataloader()
        clt = self.transcoder
        sums = StatisticsAccumulator(clt.n_layers, clt.d_model, self.device, clt.d_out)
        wanted = -(-self.tokens_config.statistics // self._data_place()[1])
        say(f"normalisation: {wanted:,} training tokens set the transcoder's scales, once")
        with Progress("normalisation", wanted, "tokens") as bar:
            for index, raw in enumerate(loader):
                batch = as_batch(raw)
                acts = self._capture(batch, self._positions(len(batch["image"]), self._generator(index)))
                sums.update(*self._sites(acts))
                bar.to(min(int(sums.n), wanted))
                if int(sums.n) >= wanted:
                    break
        if self.trainer.world_size > 1:
            for total in sums.sums():
                dist.all_reduce(total)
        self.transcoder.normalize(sums.result())
