"""What is measured of a batch: validation, test and prediction."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import Tensor

from clt_lightning.training.capturing import Capturing


class Evaluation(Capturing):
    """The steps of Lightning that learn nothing."""

    entries: set[int]
    validated_at_step: int | None

    def evaluate_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Activations, reconstruction and codes of a batch; what the callbacks measure.

        Returns:
            `{"acts": Activations (all tokens, with embeddings), "y_hat": (layers, tokens, d_model), "codes": Codes,
            "features": (layers, tokens, d_model) what the features add to y_hat; None without a linear skip,
            "entries": the stream at the entry of the blocks in `self.entries`, (images, positions, d_model) by block}`.
        """
        entries: dict[int, Tensor] = {}
        blocks = sorted(self.entries)
        with self.clip.watch(entries.__setitem__, blocks, "resid_pre") if blocks else nullcontext():
            acts = self.clip.capture(batch["image"], self._blocks, embeddings=True, sites=self._names)
        x = acts.x
        out = self.transcoder(x)
        features = out.y_hat - self.transcoder.linear_part(x) if self.transcoder.skip else None
        codes = self.transcoder.gather_codes(out.codes)
        return {"acts": acts, "y_hat": out.y_hat, "codes": codes, "features": features, "entries": entries}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return self.evaluate_batch(batch)

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated_at_step = self.trainer.global_step

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return self.evaluate_batch(batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Keys, embeddings and sparse codes of a batch."""
        result = self.evaluate_batch(batch)
        codes = result["codes"]
        return {
            "key": batch["key"],
            "embeddings": result["acts"].embeddings,
            "values": codes.values,
            "indices": codes.indices,
        }
