"""CLTModule: one training step of a transcoder on a frozen CLIP, for Lightning."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from clt_lightning import compat
from clt_lightning.backbone import Activations, Backbone, random_positions
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.make import AnyBackbone, differences, make_backbone, spec_of
from clt_lightning.core import seeds
from clt_lightning.core.errors import UserError
from clt_lightning.core.progress import Progress
from clt_lightning.core.say import say
from clt_lightning.interventions.observation import Needs, observe
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.parallel import ShardedTranscoder
from clt_lightning.runs.checkpoint_io import read_checkpoint
from clt_lightning.runs.finite import FiniteWatch
from clt_lightning.runs.timing import StepClock
from clt_lightning.training.batches import as_batch
from clt_lightning.training.buffer import ActivationBuffer
from clt_lightning.training.cascade import Clean, capture_clean, cascade_parts
from clt_lightning.training.optim import AdamW
from clt_lightning.training.schedule import lr_factor
from clt_lightning.training.settings import (
    LossConfig,
    ParallelConfig,
    ReviveConfig,
    ScheduleConfig,
    TokensConfig,
    TranscoderConfig,
    from_plain,
    to_plain,
)
from clt_lightning.transcoder import AuxiliaryRequest, CrossLayerTranscoder, StatisticsAccumulator
from clt_lightning.transcoder.chunked import add_up, split_request
from clt_lightning.transcoder.losses import auxiliary_tokens, loss_parts

# the module's own hook serves every loader, a data module's too
warnings.filterwarnings("ignore", "You have overridden `on_before_batch_transfer` in `LightningModule`")

MYPY = False  # type checkers take it for true; jsonargparse would read a TYPE_CHECKING block
if MYPY:
    BackboneOption = AnyBackbone
    Transcoder = TranscoderConfig | CrossLayerTranscoder
else:  # what the command line reads: a class and its arguments, and settings
    BackboneOption, Transcoder = Callable[[], Backbone], TranscoderConfig


def describe_transcoder(clt: CrossLayerTranscoder) -> TranscoderConfig:
    """The settings that make a transcoder like this one, untrained."""
    return TranscoderConfig(
        clt.n_features, clt.activation, clt.topology, clt.skip, clt.backend, clt.sites, clt.normalization
    )


def default_backbone() -> Backbone:
    """OpenAI's ViT-B/32."""
    return FrozenCLIP()


def default_optimizer(params: Iterable[Any]) -> torch.optim.Optimizer:
    """Fused Adam without weight decay."""
    return AdamW(params, lr=4e-4)


@dataclass
class StepPart:
    """What a step keeps of one chunk of tokens: parts of the loss, `y_hat`, fired features, number of active codes, and
    the share of rows that a low-precision product left open."""

    parts: dict[str, Tensor]
    y_hat: Tensor
    fired: Tensor
    active: Tensor
    repeated: Tensor | None = None


class CLTModule(lightning.LightningModule):
    """Trains a cross-layer transcoder on the activations of a frozen backbone.

    Batches are dicts with `image` (docs/design.md), tuples `(image, label)`, or images alone, from any loader.

    Args:
        backbone: the frozen backbone: a class and its arguments, `{class_path: FrozenCLIP, init_args: {name,
            pretrained, precision}}`, or the arguments alone; `FrozenViT` for timm's models, or a subclass of
            `Backbone` of one's own by its dotted path (docs/backbones.md). In Python also the backbone itself.
        transcoder: the transcoder: settings, or a `CrossLayerTranscoder`, which is trained in place.
        loss: coefficients and warm-up of each part of the loss.
        optimizer: optimizer class and arguments, e.g. `{class_path: torch.optim.AdamW, init_args: {lr: 4.0e-4}}`;
            default: `clt_lightning.training.optim.AdamW`.
        schedule: learning rate over the run.
        tokens: which tokens a step learns from.
        revive: how features that have stopped firing come back.
        parallel: features over several processes; not in checkpoints, which fit any number of them.
        seed: seed of the transcoder's initial weights and of the token draws; null takes that of `seed_everything`.
    """

    tokens_since_fired: Tensor

    def __init__(
        self,
        # defaults are never changed; no `| None`, since the types carry the command line's help
        backbone: BackboneOption = default_backbone,
        transcoder: Transcoder = TranscoderConfig(),  # noqa: B008
        loss: LossConfig = LossConfig(),  # noqa: B008
        optimizer: OptimizerCallable = default_optimizer,
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        tokens: TokensConfig = TokensConfig(),  # noqa: B008
        revive: ReviveConfig = ReviveConfig(),  # noqa: B008
        parallel: ParallelConfig = ParallelConfig(),  # noqa: B008
        seed: int | None = None,
    ) -> None:
        super().__init__()
        # other backbones have the same methods; those of texts refuse
        self.clip = cast(FrozenCLIP, make_backbone(backbone))
        if isinstance(transcoder, CrossLayerTranscoder):
            self.transcoder_config = describe_transcoder(transcoder)
        else:
            self.transcoder_config = from_plain(TranscoderConfig, transcoder)
        self.loss_config = from_plain(LossConfig, loss)
        self.schedule_config = from_plain(ScheduleConfig, schedule)
        self.tokens_config = from_plain(TokensConfig, tokens)
        self.revive_config = from_plain(ReviveConfig, revive)
        self.parallel_config = from_plain(ParallelConfig, parallel)
        self.optimizer_factory = optimizer
        self.seed = seed = seeds.resolve(seed)
        # plain values only: a checkpoint must load with weights_only=True
        self.save_hyperparameters(
            {
                "backbone": spec_of(self.clip),
                "transcoder": to_plain(self.transcoder_config),
                "loss": to_plain(self.loss_config),
                "schedule": to_plain(self.schedule_config),
                "tokens": to_plain(self.tokens_config),
                "revive": to_plain(self.revive_config),
                "seed": seed,
            }
        )

        t = self.transcoder_config
        sharded = self.parallel_config.feature > 1
        if isinstance(transcoder, CrossLayerTranscoder):
            if sharded:
                raise UserError(
                    "model.parallel.feature > 1 divides a transcoder that it makes: give settings, no object"
                )
            check_fit(self.clip, transcoder)
            self.transcoder = transcoder.train()
        else:
            # one that is to be divided is made in configure_model: here it might not fit the main memory
            with torch.device("meta") if sharded else nullcontext():
                self.transcoder = CrossLayerTranscoder(**self._form(), seed=None if sharded else seed)
        self.register_buffer(
            "tokens_since_fired",
            torch.zeros(self.transcoder.n_layers, t.n_features, dtype=torch.int64),
            persistent=True,
        )
        self._at_all_mlps = self.transcoder.sites.is_mlp and self.transcoder.n_layers == self.clip.n_layers
        if self.loss_config.cascade.is_on and not self._at_all_mlps:
            say("the cascade's terms of the loss are off: they are for a transcoder in the place of all MLPs")
        self.buffer = ActivationBuffer(self.tokens_config.buffer) if self.tokens_config.buffer else None
        self.finite = FiniteWatch()
        self.clock = StepClock()
        self.needs = Needs()  # what an evaluation keeps of every forward
        self.batches_seen = 0
        self.total_steps = -1  # optimizer steps of the whole run; known when training starts
        self.validated_at_step: int | None = None

    def _form(self) -> dict[str, Any]:
        """What makes the transcoder, without its seed."""
        t = self.transcoder_config
        kept = ("n_features", "activation", "topology", "skip", "backend", "normalize")
        sites = t.sites.of(t.topology)
        layers = sites.resolve(self.clip.n_layers, self.clip.name)
        if sites.layers is not None and not sites.once:
            sites = dataclasses.replace(sites, layers=list(layers))  # as the backbone numbers them
        widths = [self.clip.site_width(str(site)) for site in (sites.read, sites.write)]
        return {
            "n_layers": len(layers),
            "d_model": widths[0],
            "d_out": widths[1],
            "sites": sites,
            **{name: getattr(t, name) for name in kept},
        }

    # -- set-up ------------------------------------------------------------------------------------------------------
    def setup(self, stage: str) -> None:
        """Gives the datamodule the backbone's image transform."""
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
        self.transcoder = ShardedTranscoder(shards, **self._form(), seed=self.seed)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        try:
            optimizer = self.optimizer_factory(self.transcoder.parameters())
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

    # -- the step ----------------------------------------------------------------------------------------------------
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        generator = self._generator(self.batches_seen)
        config, strength = self.loss_config.cascade, self._cascade_strength()
        clean: Clean | None = None
        with self.clock.part("clip"):
            positions = self._positions(len(batch["image"]), generator)
            if strength:
                acts, clean = capture_clean(self.clip, batch["image"], positions, self._names)
            else:
                acts = self._capture(batch, positions)
        self.clock.begin("transcoder")  # ended after the backward pass
        x, y = self._sites(acts)
        if self.buffer is not None:
            x, y = self.buffer.exchange(x, y, generator)
        request = self._auxiliary_request(x.shape[1], generator)
        chunk = self.tokens_config.max_tokens_per_chunk or x.shape[1]
        done: list[StepPart] = []
        losses = self._chunk_losses(x, y, request, chunk, done)
        together = chunk >= x.shape[1]
        with self.transcoder.one_gradient() if together else nullcontext():
            if together:
                loss = next(losses)
            else:
                loss = add_up(losses, [p for p in self.transcoder.parameters() if p.requires_grad])
            cascade = {}
            if clean is not None:
                found = cascade_parts(self.clip, self.transcoder, batch["image"][: config.images], config, clean)
                cascade = {name: strength * value for name, value in found.items()}
        loss = torch.stack([loss, *cascade.values()]).sum()
        names = dict.fromkeys(name for part in done for name in part.parts)
        parts = {name: torch.stack([p.parts[name] for p in done if name in p.parts]).sum() for name in names}
        parts |= {name: value.detach() for name, value in cascade.items()}
        self.finite.look(self.global_step, loss, parts, acts.x, acts.y, torch.cat([part.y_hat for part in done], 1))
        self._count_fired(torch.stack([part.fired for part in done]).any(0), x.shape[1])
        self._average_threshold()
        self.batches_seen += 1
        active = self.transcoder.sum_over_shards(torch.stack([part.active for part in done]).sum())
        repeated = [part.repeated for part in done if part.repeated is not None]
        self._log_step(loss, parts, active / x.shape[:2].numel(), torch.stack(repeated).mean() if repeated else None)
        return {"loss": loss, "tokens": x.shape[1]}

    def _chunk_losses(
        self, x: Tensor, y: Tensor, request: AuxiliaryRequest | None, chunk: int, done: list[StepPart]
    ) -> Iterator[Tensor]:
        """The loss of each chunk of tokens, weighed so that they sum to the batch's; the rest goes to `done`."""
        n_tokens = x.shape[1]
        want_pre = self.loss_config.pre_activation.coefficient > 0
        for start in range(0, n_tokens, chunk):
            stop = min(start + chunk, n_tokens)
            part = split_request(request, start, stop)
            out = self.transcoder(x[:, start:stop], want_pre=want_pre, auxiliary=part, standardised=True)
            tokens = None if part is None else part.tokens
            parts = loss_parts(
                self.loss_config, self.transcoder, y[:, start:stop], out, self.global_step, tokens, self._max_steps
            )
            for name in parts:
                share = (stop - start) / n_tokens
                if name == "auxk" and part is not None and request is not None:
                    share = part.tokens.numel() / request.tokens.numel()
                parts[name] = parts[name] * share
            detached = {name: value.detach() for name, value in parts.items()}
            fired, active = self.transcoder.fired(out.codes), out.codes.l0().sum()
            done.append(StepPart(detached, out.y_hat.detach(), fired, active, out.repeated))
            yield torch.stack(list(parts.values())).sum()

    def _cascade_strength(self) -> float:
        config = self.loss_config.cascade
        return config.strength(self.global_step, self.total_steps) if self._at_all_mlps else 0.0

    def _log_step(self, loss: Tensor, parts: dict[str, Tensor], l0: Tensor, repeated: Tensor | None) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (self.global_step + 1) % every:
            return  # one transfer every few steps: reading a scalar stalls the device
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log_dict({f"train/loss/{name}": value for name, value in parts.items()})
        self.log("train/l0", l0, prog_bar=True)
        if repeated is not None:
            self.log("train/repeated_rows", repeated)
        self.log("train/lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

    def _capture(self, batch: dict[str, Any], positions: Tensor | None) -> Activations:
        return self.clip.capture(batch["image"], self._blocks, positions=positions, sites=self._names)

    @property
    def _max_steps(self) -> int:
        trainer = compat.trainer_of(self)
        return 0 if trainer is None else trainer.max_steps

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

    def _positions(self, n_images: int, generator: torch.Generator) -> Tensor | None:
        if self.transcoder.sites.read == "final":
            return None
        span, wanted = self.clip.tokens.span(self.tokens_config.set), self.tokens_config.per_image
        size = span.stop - span.start
        if wanted is not None and wanted < size:
            result: Tensor | None = random_positions(n_images, size, wanted, generator) + span.start
            return result
        return None if size == self.clip.n_positions else torch.arange(span.start, span.stop).expand(n_images, -1)

    def _auxiliary_request(self, n_tokens: int, generator: torch.Generator) -> AuxiliaryRequest | None:
        config = self.loss_config.auxk
        if not config.coefficient:
            return None
        dead = self.tokens_since_fired >= config.dead_after_tokens
        counts = tuple(dead.sum(1).tolist())
        most = max(counts)
        if not most:
            return None
        k = config.k or max(1, self.transcoder.d_out // 2)
        live = self.transcoder.activation.most_active or 64  # others bound nothing: a usual number
        n = auxiliary_tokens(config, n_tokens, k, most, live)
        chosen = torch.randperm(n_tokens, generator=generator)[:n]
        return AuxiliaryRequest(dead, k, chosen.to(self.device), counts)

    @torch.no_grad()
    def _average_threshold(self) -> None:
        # Each process follows the cut of its own batches. Evaluation needs one for all, and a checkpoint holds one.
        threshold = dict(self.transcoder.activation.named_buffers()).get("threshold")
        if threshold is not None and self.trainer.world_size > 1:
            dist.all_reduce(threshold)
            threshold /= self.trainer.world_size

    @torch.no_grad()
    def _count_fired(self, fired: Tensor, n_tokens: int) -> None:
        if self.trainer.world_size > 1:
            mask = fired.to(torch.uint8)
            dist.all_reduce(mask, op=dist.ReduceOp.MAX)
            fired = mask.bool()
        self.tokens_since_fired += n_tokens * self._data_place()[1]
        self.tokens_since_fired.masked_fill_(fired, 0)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if isinstance(self.transcoder, ShardedTranscoder):
            self.transcoder.average_replicas()
        # after the backward pass, which needs the biases as they were, and before any checkpoint of this step
        if self.revive_config.speed:
            silent = self.tokens_since_fired >= self.revive_config.after_tokens
            self.transcoder.raise_biases(silent, self.revive_config.speed * float(optimizer.param_groups[0]["lr"]))

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the norm over all features, wherever they are.

        Lightning's own refuses fused optimizers under mixed precision. That is right for fp16, where such an optimizer
        unscales the gradients itself, and needless for bf16, which scales nothing.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None or gradient_clip_algorithm not in (None, "norm"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and isinstance(self.transcoder, ShardedTranscoder):
            self.transcoder.clip_grad_norm_(float(gradient_clip_val))
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.transcoder.parameters(), float(gradient_clip_val))

    # -- evaluation --------------------------------------------------------------------------------------------------
    def evaluate_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What one forward of the tower saw, reconstruction and codes of a batch; what the callbacks measure.

        Returns:
            `{"seen": Observation (all tokens, and what `self.needs` names), "y_hat": (layers, tokens, d_out), "codes":
            Codes}`.
        """
        seen = observe(self.clip, batch["image"], clt=self.transcoder, needs=self.needs)
        out = self.transcoder(seen.x)
        return {"seen": seen, "y_hat": out.y_hat, "codes": self.transcoder.gather_codes(out.codes)}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return self.evaluate_batch(batch)

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated_at_step = self.trainer.global_step

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        # in the transcoder's own precision, whatever the trainer's is
        with torch.autocast(self.device.type, enabled=False):
            return self.evaluate_batch(batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Keys, embeddings and sparse codes of a batch."""
        result = self.evaluate_batch(batch)
        codes = result["codes"]
        return {
            "key": batch["key"],
            "embeddings": result["seen"].embeddings,
            "values": codes.values,
            "indices": codes.indices,
        }

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, strict: bool = True, **arguments: Any
    ) -> CLTModule:
        """The module of a checkpoint file, with the CLIP that it was trained on.

        Unlike Lightning's, it takes files alone and runs nothing that a file names.

        Args:
            checkpoint_path: a checkpoint of fit.
            map_location: as in `torch.load`.
            strict: whether the weights must be those of such a module, name by name.
            **arguments: of the module, in the place of the checkpoint's.

        Raises:
            UserError: no such file, a damaged one, or one of another kind.
        """
        content = read_checkpoint(checkpoint_path, map_location=map_location or "cpu", mmap=False)
        stored = content.get("hyper_parameters")
        if not isinstance(stored, dict) or "state_dict" not in content:
            raise UserError(f"{checkpoint_path} is no checkpoint of fit: it has no hyper_parameters and state_dict")
        known = inspect.signature(cls.__init__).parameters
        module = cls(**{key: value for key, value in (stored | arguments).items() if key in known})
        module.load_state_dict(content["state_dict"], strict=strict)
        return module

    # -- checkpoints -------------------------------------------------------------------------------------------------
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_seen"] = self.batches_seen
        if self.buffer is not None:
            checkpoint["activation_buffer"] = self._gather(self.buffer.state_dict())

    def check_form(self, checkpoint: dict[str, Any]) -> None:
        """Whether a checkpoint's weights are those of such a transcoder on such a CLIP.

        Raises:
            UserError: they are not; the message names the key and both values.
        """
        theirs = checkpoint.get("hyper_parameters", {})
        for key, own, other in _form_keys(dict(self.hparams), theirs):
            if own != other:
                raise UserError(
                    f"the checkpoint was trained with model.{key}={other!r}, the config says {own!r}: go on with the "
                    "checkpoint's value, or start a new run without --ckpt_path"
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_form(checkpoint)
        self.batches_seen = checkpoint.get("batches_seen", 0)
        if self.buffer is not None and "activation_buffer" in checkpoint:
            states = checkpoint["activation_buffer"]
            rank = self._data_place()[0]
            if rank < len(states):
                self.buffer.load_state_dict(states[rank], self.device)

    def _gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        if self.trainer.world_size == 1:
            return [state]
        states: list[Any] = [None] * self.trainer.world_size
        dist.all_gather_object(states, state)
        return states[:: self.trainer.world_size // self._data_place()[1]]  # one of each batch


def _form_keys(own: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Keys that decide the shape and meaning of the weights, with the values of two sets of hyperparameters."""
    for key, (a, b) in differences(own["backbone"], theirs.get("backbone", own["backbone"])).items():
        yield f"backbone.{key}", a, b
    for key in ("n_features", "topology", "skip", "sites", "normalize"):
        a, b = own["transcoder"][key], theirs.get("transcoder", {}).get(key, own["transcoder"][key])
        yield f"transcoder.{key}", a, b
    a = own["transcoder"]["activation"]["class_path"]
    b = theirs.get("transcoder", {}).get("activation", {}).get("class_path", a)
    yield "transcoder.activation.class_path", a, b
