"""CLTModule: one training step of a transcoder on a frozen CLIP, for Lightning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.backbone.make import AnyBackbone, make_backbone, spec_of
from clt_lightning.core import seeds
from clt_lightning.core.errors import UserError
from clt_lightning.core.say import say
from clt_lightning.interventions.observation import Needs
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.parallel import ShardedTranscoder
from clt_lightning.runs.finite import FiniteWatch
from clt_lightning.runs.timing import StepClock
from clt_lightning.training.assembly import describe_transcoder, transcoder_form
from clt_lightning.training.attention.config import AttentionConfig
from clt_lightning.training.attention.learner import AttentionLearner, active_codes, refuse_part_images
from clt_lightning.training.attention.make import attention_learner
from clt_lightning.training.buffer import ActivationBuffer
from clt_lightning.training.checkpointing import Checkpointing
from clt_lightning.training.clipping import clip_by_norm
from clt_lightning.training.evaluating import Evaluating
from clt_lightning.training.losses import loss_parts
from clt_lightning.training.losses.auxk import auxiliary_request, split_request
from clt_lightning.training.losses.cascade import Clean, cascade_parts
from clt_lightning.training.optim import AdamW
from clt_lightning.training.preparation import Preparation
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
from clt_lightning.transcoder import AuxiliaryRequest, Codes, CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention, AttentionOutput
from clt_lightning.transcoder.chunked import add_up

# the module's own hook serves every loader, a data module's too
warnings.filterwarnings("ignore", "You have overridden `on_before_batch_transfer` in `LightningModule`")

MYPY = False  # type checkers take it for true; jsonargparse would read a TYPE_CHECKING block
if MYPY:
    BackboneOption = AnyBackbone
    Transcoder = TranscoderConfig | CrossLayerTranscoder
    Attention = AttentionConfig | AnyAttention
else:  # what the command line reads: a class and its arguments, and settings
    BackboneOption, Transcoder, Attention = Callable[[], Backbone], TranscoderConfig, AttentionConfig


def default_backbone() -> Backbone:
    """OpenAI's ViT-B/32."""
    return FrozenCLIP()


def default_optimizer(params: Iterable[Any]) -> torch.optim.Optimizer:
    """Fused Adam without weight decay."""
    return AdamW(params, lr=4e-4)


@dataclass
class StepPart:
    """What a step keeps of one chunk of tokens: parts of the loss, `y_hat`, fired features, number of active codes, the
    share of rows that a low-precision product left open, and the codes where there is one chunk alone.
    """

    parts: dict[str, Tensor]
    y_hat: Tensor
    fired: Tensor
    active: Tensor
    repeated: Tensor | None = None
    codes: Codes | None = None


class CLTModule(Preparation, Evaluating, Checkpointing):
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
        attention: sparse attention, or an autoencoder of it, trained beside the transcoder: settings, or a
            `SparseAttention` or such a `CrossLayerTranscoder`, which is trained in place. Off by default.
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
        attention: Attention = AttentionConfig(),  # noqa: B008
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.tokens_config = from_plain(TokensConfig, tokens)
        if not isinstance(attention, AnyAttention):
            attention = from_plain(AttentionConfig, attention)
        attends = attention.n_features > 0
        if attends:
            refuse_part_images(self.tokens_config)
        # other backbones have the same methods; those of texts refuse
        self.clip = cast(FrozenCLIP, make_backbone(backbone))
        if isinstance(transcoder, CrossLayerTranscoder):
            self.transcoder_config = describe_transcoder(transcoder)
        else:
            self.transcoder_config = from_plain(TranscoderConfig, transcoder)
        self.loss_config = from_plain(LossConfig, loss)
        self.schedule_config = from_plain(ScheduleConfig, schedule)
        self.revive_config = from_plain(ReviveConfig, revive)
        self.parallel_config = from_plain(ParallelConfig, parallel)
        self.optimizer_factory = optimizer
        self.seed = seed = seeds.resolve(seed)
        self.units = attention_learner(self.clip, attention, seed) if attends else None
        self.attention_config = attention if self.units is None else self.units.config
        # plain values only: a checkpoint must load with weights_only=True
        self.save_hyperparameters(
            {
                "backbone": spec_of(self.clip),
                "transcoder": to_plain(self.transcoder_config),
                "attention": to_plain(self.attention_config),
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
                form = transcoder_form(self.transcoder_config, self.clip)
                self.transcoder = CrossLayerTranscoder(**form, seed=None if sharded else seed)
        self.register_buffer(
            "tokens_since_fired",
            torch.zeros(self.transcoder.n_layers, t.n_features, dtype=torch.int64),
            persistent=True,
        )
        if self.units is not None:
            self._check_beside()
        self._at_all_mlps = self.transcoder.sites.is_mlp and self.transcoder.n_layers == self.clip.n_layers
        if self.loss_config.cascade.is_on and not self._at_all_mlps:
            say("the cascade's terms of the loss are off: they are for a transcoder in the place of all MLPs")
        self._check_prototype()
        # a buffer mixes images: each token then brings along what it is
        mixed = bool(self.tokens_config.buffer) and self.transcoder.cls_weight != 1
        self._marked = self.loss_config.reads_marks or mixed
        self.buffer = ActivationBuffer(self.tokens_config.buffer) if self.tokens_config.buffer else None
        self.finite = FiniteWatch()
        self.clock = StepClock()
        self.needs = Needs()  # what an evaluation keeps of every forward
        self.batches_seen = 0
        self.total_steps = -1  # optimizer steps of the whole run; known when training starts
        self.validated_at_step: int | None = None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        generator = self._generator(self.batches_seen)
        config, strength = self.loss_config.cascade, self._cascade_strength()
        clean: Clean | None = None
        heads = None
        with self.clock.part("clip"):
            positions = self._positions(len(batch["image"]), generator)
            if self.units is not None:
                acts, clean, heads = self._capture_with_attention(batch, bool(strength))
            elif strength:
                acts, clean = self._capture_clean(batch, positions)
            else:
                acts = self._capture(batch, positions)
        self.clock.begin("transcoder")  # ended after the backward pass
        x, y = self._sites(acts)
        marks = self._marks(batch, positions, x.shape[1]) if self._marked else None
        if self.buffer is not None:
            x, y, marks = self.buffer.exchange_marked(x, y, marks, generator)
        request = auxiliary_request(
            self.loss_config.auxk, self.transcoder, self.tokens_since_fired, x.shape[1], generator
        )
        chunk = self.tokens_config.max_tokens_per_chunk or x.shape[1]
        cls = self._cls_rows(positions, x.shape[1], marks if self.buffer is not None else None)
        done: list[StepPart] = []
        losses = self._chunk_losses(x, y, request, chunk, done, marks, cls)
        together = chunk >= x.shape[1]
        with self.transcoder.one_gradient() if together else nullcontext():
            if together:
                loss = next(losses)
            else:
                loss = add_up(losses, [p for p in self.transcoder.parameters() if p.requires_grad])
            cascade = {}
            if clean is not None:
                images = batch["image"][: config.images]
                whole = positions is None and self.buffer is None  # the step's tokens are all of the images'
                found = cascade_parts(
                    *(self.clip, self.transcoder, images, config, clean, self._attention_in_cascade()),
                    codes=done[0].codes if whole else None,
                )
                cascade = {name: strength * value for name, value in found.items()}
            beside: dict[str, Tensor] = {}
            if self.units is not None and heads is not None:
                beside, attended = self.units.losses(self.clip, heads, generator)
                self._follow_units(self.units, attended, len(batch["image"]))
        loss = torch.stack([loss, *cascade.values(), *beside.values()]).sum()
        names = dict.fromkeys(name for part in done for name in part.parts)
        parts = {name: torch.stack([p.parts[name] for p in done if name in p.parts]).sum() for name in names}
        parts |= {name: value.detach() for name, value in (cascade | beside).items()}
        self.finite.look(self.global_step, loss, parts, acts.x, acts.y, torch.cat([part.y_hat for part in done], 1))
        self._count_fired(torch.stack([part.fired for part in done]).any(0), x.shape[1])
        self._average_statistics()
        self.batches_seen += 1
        active = self.transcoder.sum_over_shards(torch.stack([part.active for part in done]).sum())
        repeated = [part.repeated for part in done if part.repeated is not None]
        self._log_step(loss, parts, active / x.shape[:2].numel(), torch.stack(repeated).mean() if repeated else None)
        return {"loss": loss, "tokens": x.shape[1]}

    def _chunk_losses(
        self,
        x: Tensor,
        y: Tensor,
        request: AuxiliaryRequest | None,
        chunk: int,
        done: list[StepPart],
        marks: Tensor | None = None,
        cls: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """The loss of each chunk of tokens, weighted so that they sum to the batch's; the rest goes to `done`."""
        n_tokens = x.shape[1]
        want_pre = self.loss_config.needs("pre")
        for start in range(0, n_tokens, chunk):
            stop = min(start + chunk, n_tokens)
            part = split_request(request, start, stop)
            own = None if cls is None else cls[(cls >= start) & (cls < stop)] - start
            out = self.transcoder(x[:, start:stop], want_pre=want_pre, auxiliary=part, standardised=True, cls=own)
            tokens = None if part is None else part.tokens
            known = () if marks is None else marks[start:stop].unbind(1)
            labels, places, studies = (*known, None, None, None)[:3]
            parts = loss_parts(
                *(self.loss_config, self.transcoder, y[:, start:stop], out, self.global_step),
                *(tokens, self._max_steps, labels, places, studies),
            )
            for name in parts:
                share = (stop - start) / n_tokens
                if name == "auxk" and part is not None and request is not None:
                    share = part.tokens.numel() / request.tokens.numel()
                parts[name] = parts[name] * share
            detached = {name: value.detach() for name, value in parts.items()}
            fired, active = self.transcoder.fired(out.codes), out.codes.l0().sum()
            codes = out.codes if chunk >= n_tokens else None
            done.append(StepPart(detached, out.y_hat.detach(), fired, active, out.repeated, codes))
            yield torch.stack(list(parts.values())).sum()

    @property
    def attention(self) -> AnyAttention | None:
        """The units, or the autoencoder, trained beside the transcoder; None where there are none."""
        return None if self.units is None else self.units.attention

    def _check_beside(self) -> None:
        """Whether units can be trained beside this transcoder.

        Raises:
            UserError: they cannot.
        """
        if self.parallel_config.feature > 1:
            raise UserError(
                f"model.attention: units are not divided over processes: with model.parallel.feature="
                f"{self.parallel_config.feature} leave them out, and train them alone (docs/attention.md)"
            )
        site = str(self.transcoder.sites.write)
        if {site, str(self.transcoder.sites.read)} & {"attn_z", "attn_out"}:
            raise UserError(
                f"model.attention: the transcoder stands at {site} itself, in the attention that is replaced: leave "
                "one of the two out"
            )

    def _attention_in_cascade(self) -> AnyAttention | None:
        if self.units is None or not self.units.config.in_cascade(self.global_step):
            return None
        return self.units.attention

    def _follow_units(self, units: AttentionLearner, out: AttentionOutput, images: int) -> None:
        """Counts what fired, and logs it."""
        trainer: Any = self.trainer
        if trainer.log_every_n_steps and (self.global_step + 1) % trainer.log_every_n_steps == 0:
            self.log("train/attention/l0", active_codes(out).mean())
            self.log("train/attention/dead", units.dead.float().mean())
        units.count_fired(out, images, trainer.world_size, self._data_place()[1])
        units.average_statistics(trainer.world_size)

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
        for prior in self.priors():
            self.log_dict({f"train/{name}": value for name, value in prior.measures().items()})
        self.log("train/lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

    @torch.no_grad()
    def _average_statistics(self) -> None:
        # Each process follows its own batches (BatchTopK the cut). Evaluation needs one for all, so does a checkpoint.
        if self.trainer.world_size == 1:
            return
        clt = self.transcoder
        for name, buffer in clt.activation.named_buffers():
            if buffer.is_floating_point():
                whole = clt.exchange.placed(name, buffer) if isinstance(clt, ShardedTranscoder) else buffer
                dist.all_reduce(whole)
                divided = whole.shape != buffer.shape
                whole /= self._data_place()[1] if divided else self.trainer.world_size
                buffer.copy_(clt.exchange.part(name, whole) if isinstance(clt, ShardedTranscoder) else whole)

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
        elif not gradient_clip_val:
            return
        elif self.units is None:
            clip_by_norm(self.transcoder, optimizer, float(gradient_clip_val))
        else:
            for part in (self.transcoder, self.units):  # each by itself: neither shortens the other's steps
                torch.nn.utils.clip_grad_norm_(part.parameters(), float(gradient_clip_val))
