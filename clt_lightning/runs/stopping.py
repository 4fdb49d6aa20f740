"""Early stopping that lasts: a run that it has ended does not train on when it is started again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from clt_lightning.compat import stop_after_validations

#: What decides when a run stops; a run whose settings were changed since is trained on
_SETTINGS = ("patience", "min_delta", "stopping_threshold", "divergence_threshold", "check_finite")


class Stops:
    """The early stopping callbacks of a trainer, with the settings that the config gives them.

    Args:
        callbacks: the trainer's; looked at before a checkpoint is loaded, which changes their settings.
    """

    def __init__(self, callbacks: Iterable[pl.Callback]) -> None:
        self._callbacks = [c for c in callbacks if isinstance(c, EarlyStopping)]
        self._settings = {c.state_key: {name: getattr(c, name) for name in _SETTINGS} for c in self._callbacks}
        for callback in self._callbacks:
            stop_after_validations(callback)

    def asked(self, trainer: pl.Trainer) -> list[dict[str, Any]]:
        """The callbacks that stop the run now, in plain values for a checkpoint; empty if none does."""
        if not trainer.should_stop:
            return []
        return [
            {
                "callback": callback.state_key,
                "kind": callback.stopping_reason.value,
                "reason": callback.stopping_reason_message,
                "waited": callback.wait_count,
                "settings": self._settings[callback.state_key],
            }
            for callback in self._callbacks
            if callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED
        ]

    def still_stop(self, asked: Iterable[Mapping[str, Any]]) -> str | None:
        """Why the run is at its end, if a callback that stopped it would stop it again; else None.

        Args:
            asked: what the checkpoint says (`asked` of an earlier start).
        """
        for stop in asked:
            now, then = self._settings.get(stop["callback"]), stop["settings"]
            if now is None or any(now[name] != then[name] for name in _SETTINGS if name != "patience"):
                continue
            if stop["kind"] != EarlyStoppingReason.PATIENCE_EXHAUSTED.value or now["patience"] <= stop["waited"]:
                return str(stop["reason"] or stop["callback"])
        return None

    def go_on(self) -> None:
        """Puts back the config's settings after a checkpoint was loaded, and forgets an earlier stop."""
        for callback in self._callbacks:
            callback.patience = self._settings[callback.state_key]["patience"]
            callback.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            callback.stopping_reason_message = None
