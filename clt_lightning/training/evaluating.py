"""What is measured of a batch: validation, test and prediction."""

from __future__ import annotations

from typing import Any

import torch

from clt_lightning.interventions.observation import Needs, observe
from clt_lightning.training.capturing import Capturing


class Evaluating(Capturing):
    """The steps of Lightning that learn nothing."""

    needs: Needs
    validated_at_step: int | None

    def evaluate_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What one forward of the tower saw, reconstruction and codes of a batch; what the callbacks measure.

        Returns:
            `{"seen": Observation (all tokens, and what `self.needs` names), "y_hat": (layers, tokens, d_out), "codes":
            Codes}`.
        """
        images = batch["image"]
        seen = self._forward(
            ("observed", self._blocks, self._names, self.needs),
            (images,),
            lambda: observe(self.clip, images, clt=self.transcoder, needs=self.needs),
        )
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
