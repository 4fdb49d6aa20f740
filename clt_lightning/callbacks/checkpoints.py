"""The best and the last checkpoint of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from clt_lightning import compat
from clt_lightning.callbacks.base import fast_dev_run, run_folder
from clt_lightning.callbacks.reconstruction import Reconstruction
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_errors
from clt_lightning.runs.checkpoint_io import SafeCheckpointIO, remove_temporaries
from clt_lightning.runs.finite import FiniteWatch, not_finite
from clt_lightning.runs.folder import LAST
from clt_lightning.runs.lock import Lock
from clt_lightning.runs.stopping import Stops


class Checkpoints(compat.CheckpointFiles):
    """Keeps `best-step<n>.ckpt` and `last.ckpt` in `<run>/checkpoints/`.

    Other than plain `ModelCheckpoint`, `last.ckpt` is always the newest state: it is written before and after every
    validation, every `last_every_n_steps` steps and at the end of training, whether the monitored number improved or
    not. The final weights are always validated, and so compete for the best. Weights that hold NaN or infinity are
    never written.

    Files are written between optimizer steps only, and validations come between them, too: with
    `accumulate_grad_batches`, one that `val_check_interval` puts into the middle of a step comes at its end. A
    checkpoint that was written before a validation remembers it, and the resumed run validates first. A run that early
    stopping has ended stays ended.

    Args:
        monitor: logged number that decides which checkpoint is best.
        mode: `min` if smaller is better, else `max`.
        keep: how many of the best checkpoints are kept; 0 for none, -1 for all.
        last_every_n_steps: also write `last.ckpt` every so many optimizer steps; null: around validations only.
        dirpath: folder for the checkpoints; null: `checkpoints/` in the run's folder.

    Raises:
        UserError: if `last_every_n_steps` is not positive, `monitor` is logged by no callback, or weights are not
            finite when they should be written.

    Attributes:
        validate_again: whether a checkpoint's word that its step was validated is not to be taken.
    """

    def __init__(
        self,
        monitor: str = "val/fvu/all",
        mode: str = "min",
        keep: int = 1,
        last_every_n_steps: int | None = None,
        dirpath: str | Path | None = None,
    ) -> None:
        if last_every_n_steps is not None and last_every_n_steps < 1:
            raise UserError(f"checkpoints.last_every_n_steps must be positive or null, got {last_every_n_steps}")
        super().__init__(
            dirpath=dirpath,
            filename="best-step{step}",
            monitor=monitor,
            mode=mode,
            save_top_k=keep,
            save_last=True,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
            # A resumed run goes on in its folder and replaces last.ckpt; last-v1.ckpt would leave a stale last.ckpt.
            enable_version_counter=False,
        )
        self.last_every_n_steps = last_every_n_steps
        self._last_written_at = -1
        self._validated_at = -1
        self._validation_due = False
        self.validate_again = False
        self._same_state: list[str] | None = None  # files of this validation's end
        self._lock: Lock | None = None
        self._stops = Stops([])
        self._stopped: list[dict[str, Any]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if self.dirpath is None and folder is not None:
            self.dirpath = str(folder / "checkpoints")
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        compat.whole_steps(trainer)
        self._stops = Stops(trainer.callbacks)  # type: ignore[attr-defined]
        if self.save_top_k != 0:
            self._check_monitor(trainer)
        self._lock_shared(trainer, folder)
        if trainer.is_global_zero and not fast_dev_run(trainer) and self.dirpath:
            left = remove_temporaries(Path(self.dirpath))
            if left:
                rank_zero_info(f"removed what a killed run left half-written: {', '.join(left)}")

    def _lock_shared(self, trainer: pl.Trainer, folder: Path | None) -> None:
        """Keeps another run out of a folder for checkpoints that does not lie in this one's own."""
        place = Path(self.dirpath or "")
        if self.dirpath is None or "://" in str(self.dirpath) or fast_dev_run(trainer):
            return
        if folder is not None and place.resolve().is_relative_to(folder.resolve()):
            return
        error = None
        if trainer.is_global_zero:
            try:
                with disk_errors(place):
                    place.mkdir(parents=True, exist_ok=True)
                self._lock = Lock(place)
                self._lock.acquire()
            except UserError as refused:
                error = str(refused)
        error = trainer.strategy.broadcast(error)
        if error is not None:
            raise UserError(error)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._unlock()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._unlock()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._stops.still_stop(self._stopped):
            trainer.should_stop = True
        else:
            self._stops.go_on()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # what was loaded from last.ckpt is in it
        loaded = Path(str(trainer.ckpt_path or "")).resolve()
        here = self.dirpath is not None and loaded == (Path(self.dirpath) / LAST).resolve()
        self._last_written_at = trainer.global_step if here else -1
        if self._validation_due and trainer.enable_validation:
            # the checkpoint was written between its step and the validation of that step
            compat.validate(trainer)
        self._validation_due = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not compat.whole_step(trainer):
            return
        every = self.last_every_n_steps
        validates = trainer.enable_validation and (compat.validation_follows(trainer) or _was_last_step(trainer))
        if validates or (every and trainer.global_step % every == 0):
            self.write_last_after_step(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Written again even if this step has a last.ckpt: now it also knows this validation's outcome.
        self._last_written_at = -1
        self._validation_due = False
        if self._writes(trainer):
            self._validated_at = trainer.global_step
            if self.save_top_k != 0 and self.monitor not in trainer.callback_metrics:
                self._write_last(trainer)  # the steps up to here shall not be lost by a wrong word
                logged = ", ".join(sorted(map(str, trainer.callback_metrics))) or "nothing"
                raise UserError(
                    f"checkpoints.monitor={self.monitor!r} is not logged on validation (logged: {logged}): choose one "
                    "of these, or add the callback that logs it (Reconstruction for val/fvu/...). The state up to here "
                    f"is in {self.last_model_path}"
                )
            # a best one and last.ckpt now hold one state, down to the name of the last: it is written once
            self.last_model_path = self.format_checkpoint_name({}, self.CHECKPOINT_NAME_LAST)
            self._same_state = []
        try:
            super().on_validation_end(trainer, pl_module)
            self._write_last(trainer)
        finally:
            self._same_state = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._stops.asked(trainer) != self._stopped:
            self._last_written_at = -1  # asked after the last validation
        self._write_last(trainer)
        if self._writes(trainer) and trainer.enable_validation and self._validated_at != trainer.global_step:
            compat.validate(trainer)

    def holds_now(self, trainer: pl.Trainer) -> bool:
        """Whether `last.ckpt` holds the state of the last whole step."""
        return self._last_written_at == trainer.global_step

    def write_last_after_step(self, trainer: pl.Trainer) -> None:
        """Writes `last.ckpt`; to be called from `on_train_batch_end`, on every process, after a whole step."""
        self._validation_due = trainer.enable_validation and compat.validation_follows(trainer)
        self._write_last(trainer)
        self._validation_due = False

    def state_dict(self) -> dict[str, Any]:
        """The base class's state, which step was validated, whether the validation of this one is still to come, and
        what early stopping said.
        """
        own = {"validated_at": self._validated_at, "validation_due": self._validation_due, "stopped": self._stopped}
        return super().state_dict() | own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state back, also that of a run whose folder was moved."""
        before = state_dict.get("dirpath")
        if before and self.dirpath and before != self.dirpath:
            state_dict = _moved(state_dict, str(before), str(self.dirpath))
        super().load_state_dict(state_dict)
        self._validated_at = -1 if self.validate_again else int(state_dict.get("validated_at", -1))
        self._validation_due = bool(state_dict.get("validation_due", False))
        self._stopped = list(state_dict.get("stopped", []))

    def after_file(self, trainer: pl.Trainer, filepath: str) -> None:
        if self._same_state is not None:
            self._same_state.append(filepath)

    def give_name(self, trainer: pl.Trainer, filepath: str) -> bool:
        io = trainer.strategy.checkpoint_io
        if not self._same_state or not isinstance(io, SafeCheckpointIO):
            return False
        given = trainer.is_global_zero and io.link_checkpoint(self._same_state[0], filepath)
        return bool(trainer.strategy.broadcast(given))

    def _check_monitor(self, trainer: pl.Trainer) -> None:
        """A token set that is not reported is said before the first step."""
        asked = re.fullmatch(r"val/(?:fvu|cosine|l0|dead)/(\w+)(?:/layer_\d+)?", self.monitor or "")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if asked and isinstance(callback, Reconstruction) and asked[1] not in callback.token_sets:
                raise UserError(
                    f"checkpoints.monitor={self.monitor!r}: reconstruction.token_sets has no {asked[1]!r} (it has "
                    f"{', '.join(callback.token_sets)}): add it there, or monitor one of those"
                )

    def _writes(self, trainer: pl.Trainer) -> bool:
        return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not fast_dev_run(trainer)

    def _write_last(self, trainer: pl.Trainer) -> None:
        if self._writes(trainer) and trainer.global_step not in (0, self._last_written_at):
            self.write_last_now(trainer)

    def after_last(self, trainer: pl.Trainer) -> None:
        self._last_written_at = trainer.global_step

    def before_file(self, trainer: pl.Trainer, filepath: str) -> None:
        self._stopped = self._stops.asked(trainer)
        watch = getattr(trainer.lightning_module, "finite", None)
        told = watch.settle() if isinstance(watch, FiniteWatch) else None
        bad = not_finite(trainer.lightning_module.named_parameters())
        if not trainer.strategy.reduce_boolean_decision(not (bad or told), all=True):
            if told:
                raise UserError(told)
            raise UserError(
                f"step {trainer.global_step}: the weights hold NaN or infinity ({', '.join(bad) or 'other process'}; "
                f"the number is the layer): {Path(filepath).name} is not written, and the last good checkpoint stays "
                "as it is. To go on, lower the learning rate, or set trainer.gradient_clip_val"
            )
        # What was logged up to here must be on the disk, too: a run that is killed later goes on from here.
        for logger in trainer.loggers if trainer.is_global_zero else []:
            flush = getattr(getattr(logger, "experiment", None), "flush", None)
            if callable(flush):
                flush()


def _was_last_step(trainer: pl.Trainer) -> bool:
    epoch_ends = compat.was_last_batch(trainer)
    last_epoch = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
    return 0 <= trainer.max_steps <= trainer.global_step or (epoch_ends and last_epoch)


def _moved(state: dict[str, Any], before: str, now: str) -> dict[str, Any]:
    """The state with the paths that its files have in another folder; without those that are not there."""

    def path(old: str) -> str:
        new = Path(now) / Path(old).name if old and Path(old).parent == Path(before) else Path(old)
        return str(new) if old and new.exists() else ""

    best = {path(old): score for old, score in state["best_k_models"].items() if path(old)}
    if len(best) < len(state["best_k_models"]):
        return state  # another run's checkpoint: the base class starts its list afresh, and says so
    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    return state | {"dirpath": now, "best_k_models": best} | {name: path(state[name]) for name in names}
