"""One layer of a transcoder as what ViSAEBench measures: `encode` and `decode` of the same activations."""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder


class ViSAEBenchAdapter:
    """An autoencoder in the form of ViSAEBench's `SAEInterface`.

    Its metrics rebuild the very activations that they encode, so that only topology `sae` can be measured: what
    reads one site and rebuilds another is no autoencoder.

    Args:
        clt: of topology `sae`.
        layer: which of its layers; negative ones count from the end.

    Raises:
        UserError: another topology, `normalize='token'` (its codes alone do not tell the token's scale), or no such
            layer.
    """

    def __init__(self, clt: CrossLayerTranscoder, layer: int = -1) -> None:
        if clt.topology != "sae":
            raise UserError(
                f"ViSAEBench measures autoencoders, and a transcoder of topology '{clt.topology}' rebuilds "
                f"{clt.sites.write} from {clt.sites.read}: train topology 'sae'"
            )
        if clt.normalization == "token":
            raise UserError(
                "ViSAEBench decodes codes alone, and with normalize='token' the reconstruction needs each token's mean "
                "and scale as well: train with normalize='layer'"
            )
        if not -clt.n_layers <= layer < clt.n_layers:
            raise UserError(f"layer {layer} does not exist: the transcoder has layers 0 to {clt.n_layers - 1}")
        self.clt, self.layer = clt.eval(), layer % clt.n_layers

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Activations `(tokens, d_model)` to codes `(tokens, F)`, dense."""
        return self.clt.encode_layer(x.to(self.clt.b_dec), self.layer).dense()[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Codes `(tokens, F)` to activations `(tokens, d_model)`."""
        rows = torch.arange(self.clt.n_features, device=self.clt.b_dec.device)
        directions = self.clt.rows(self.layer, rows, self.layer)
        return z.to(directions) @ directions + self.clt.bias(self.layer)
