"""Made transcoders with no zero weight anywhere, so that every gradient is tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from clt_lightning.transcoder import CrossLayerTranscoder

MakeCLT = Callable[..., CrossLayerTranscoder]


@pytest.fixture
def make_clt() -> MakeCLT:
    def make(
        n_layers: int = 3,
        d_model: int = 8,
        n_features: int = 20,
        dtype: torch.dtype = torch.float64,
        scales: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> CrossLayerTranscoder:
        clt = CrossLayerTranscoder(n_layers, d_model, n_features, seed=seed, **options).to(dtype)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for name, parameter in clt.named_parameters():
                if "threshold" not in name:
                    parameter.add_(
                        0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
                    )
            if scales:
                clt.x_scale.copy_(2.0 ** torch.arange(-1, n_layers - 1))
                clt.y_scale.copy_(2.0 ** -torch.arange(-1, n_layers - 1).to(dtype))
        return clt

    return make
