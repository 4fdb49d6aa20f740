"""The amplified model, for any use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from clt_lightning.analysis.amplify.places import Amplifier, Seen
from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder


@contextmanager
def amplified(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    gamma: float,
    strength: float = 1.0,
    layers: Sequence[int] | None = None,
) -> Iterator[None]:
    """While active, codes of [CLS] are multiplied: VS2, `x + strength * (gamma - 1) * W_dec z`, of the length of x.

    With `gamma` 1 nothing changes, to the last bit.

    Args:
        clip: the backbone.
        clt: a transcoder or autoencoder.
        gamma: what codes are multiplied by.
        strength: what the change is multiplied by.
        layers: the backbone's blocks whose features are amplified; None: all where the transcoder stands.

    Raises:
        UserError: a number that is not finite, and what `Amplifier` raises.
    """
    alpha = strength * (gamma - 1)
    if not abs(alpha) < float("inf"):
        raise UserError(f"gamma and strength must be finite, got {gamma} and {strength}")

    def displace(place: int, seen: Seen) -> Tensor:
        return alpha * seen.terms.sum(0)

    with Amplifier(clip, clt, layers).moving(displace):
        yield
