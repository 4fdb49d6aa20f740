"""The adapter for ViSAEBench: the transcoder's own numbers. tests/interop lets the package itself measure it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clt_lightning.analysis.visaebench import ViSAEBenchAdapter
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder, TopK


def made(**settings: Any) -> CrossLayerTranscoder:
    given: dict[str, Any] = {"topology": "sae", "seed": 0}
    clt = CrossLayerTranscoder(2, 6, 12, TopK(3), **(given | settings))
    with torch.no_grad():
        for W in clt.W_dec:
            W.normal_(generator=torch.Generator().manual_seed(1))
        clt.y_scale.copy_(torch.tensor([0.5, 3.0]))
        clt.b_dec.normal_(generator=torch.Generator().manual_seed(2))
    return clt.eval()


@pytest.mark.parametrize("layer", [0, -1])
def test_it_is_the_transcoder(layer: int) -> None:
    clt = made()
    x = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(3))
    adapter = ViSAEBenchAdapter(clt, layer)
    codes = adapter.encode(x[layer])
    torch.testing.assert_close(codes, clt.encode(x).dense()[layer])
    torch.testing.assert_close(adapter.decode(codes), clt(x).y_hat[layer].detach())


def test_what_is_no_autoencoder_is_refused() -> None:
    with pytest.raises(UserError, match="rebuilds mlp_out from mlp_in"):
        ViSAEBenchAdapter(made(topology="cross_layer"))
    with pytest.raises(UserError, match="needs each token's mean"):
        ViSAEBenchAdapter(made(normalize="token"))
    with pytest.raises(UserError, match="layers 0 to 1"):
        ViSAEBenchAdapter(made(), 2)
