"""The settings of sparse attention: what stands under `model.attention` in a config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import Activation, TopK


@dataclass
class AttentionConfig:
    """Sparse attention, learned beside the transcoder from the same images: units of rank one, or features of an
    autoencoder, that rebuild what every attention layer adds (docs/attention.md). It needs whole images: all tokens of
    them, in one piece. Off by default.

    Args:
        n_features: units of each attention layer, a multiple of its heads, or features; 0 turns it off.
        activation: which of them are active at a (query) position: TopK, AbsTopK, BatchTopK, JumpReLU or ReLU.
        d_qk: size of queries and keys of the units' own, trained; null: the model's own patterns, frozen. Graphs hold
            the model's alone.
        n_heads: with `d_qk`: how many patterns of their own there are; null: as many as the model has.
        lr: learning rate, as a multiple of the optimizer's.
        cascade: share of the cascade's steps (`model.loss.cascade`) in which the attention is replaced beside the
            MLPs; in the others it is the MLPs alone. 0: in none.
        auxk: weight of the term by which those that have stopped firing learn to rebuild what is left over (Gao et al.
            2024), on the scale of the reconstruction; 0 turns it off.
        dead_after: images (of all processes together) after which one that did not fire counts as stopped.
        kind: `units` read the stream at the keys and move what they read (they say from where); `autoencoder`: features
            read what the attention adds at their own position (they say what).
        site: of an autoencoder: `attn_out`, what the attention adds; or `attn_z`, the outputs of all heads before the
            model's own output projection, which then reads what is rebuilt of them.
    """

    n_features: int = 0
    activation: Activation = field(default_factory=lambda: TopK(32))
    d_qk: int | None = None
    n_heads: int | None = None
    lr: float = 1.0
    cascade: float = 0.5
    auxk: float = 1 / 32
    dead_after: int = 2000
    kind: Literal["units", "autoencoder"] = "units"
    site: Literal["attn_out", "attn_z"] = "attn_out"

    def __post_init__(self) -> None:
        check_fields(self, "attention")
        if self.n_features < 0:
            raise UserError(f"attention.n_features must be 0 (off) or more, got {self.n_features}")
        if self.kind == "autoencoder" and (self.d_qk is not None or self.n_heads is not None):
            raise UserError("attention: d_qk and n_heads are of units; an autoencoder moves nothing: leave them out")
        if self.kind == "units" and self.site != "attn_out":
            raise UserError(
                f"attention.site={self.site}: units write what the attention adds; give kind: autoencoder for another "
                "site"
            )
        for name in ("d_qk", "n_heads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"attention.{name} must be at least 1 or null, got {value}")
        if self.n_heads is not None and self.d_qk is None:
            raise UserError("attention.n_heads: units that move by the model's own patterns have its heads: give d_qk")
        if self.lr <= 0 or self.auxk < 0 or self.dead_after < 1:
            raise UserError(
                "attention: lr must be more than 0, auxk not negative and dead_after at least 1, got "
                f"lr={self.lr}, auxk={self.auxk}, dead_after={self.dead_after}"
            )
        if not 0 <= self.cascade <= 1:
            raise UserError(f"attention.cascade must lie in [0, 1], got {self.cascade}")

    def in_cascade(self, step: int) -> bool:
        """Whether a cascade's step has the attention replaced, too: evenly, `cascade` of all steps."""
        return int((step + 1) * self.cascade + 1e-9) > int(step * self.cascade + 1e-9)
