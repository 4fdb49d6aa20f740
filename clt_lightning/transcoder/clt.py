"""The Cross-Layer Transcoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clt_lightning.core.arguments import whole
from clt_lightning.core.errors import UserError
from clt_lightning.core.sites import Sites
from clt_lightning.transcoder.activations import Activation, TopK
from clt_lightning.transcoder.buffers import GradientBuffers
from clt_lightning.transcoder.codes import Codes
from clt_lightning.transcoder.decoders import Topology
from clt_lightning.transcoder.encoders import Backend
from clt_lightning.transcoder.favoured import Favoured, cls_rows
from clt_lightning.transcoder.normalization import standardise
from clt_lightning.transcoder.precision import full_precision
from clt_lightning.transcoder.requests import AuxiliaryRequest, CLTOutput
from clt_lightning.transcoder.saving import TranscoderSaving
from clt_lightning.transcoder.scaled import Normalize, ScaledDecoders


def _decoder(n_features: int, targets: int, d_model: int) -> Tensor:
    """Zeros of shape `(F, targets, d_model)`, a target's block contiguous."""
    # a dimension of size 1 has no stride of its own to keep: the plain one agrees with DDP's buckets
    blocks = torch.zeros(targets, n_features, d_model)
    return blocks.view(n_features, 1, d_model) if targets == 1 else blocks.transpose(0, 1)


def _share(counts: Sequence[Tensor | None], n_tokens: int) -> Tensor | None:
    """Of all rows of those layers that have a count."""
    known = [count for count in counts if count is not None]
    return torch.stack(known).sum() / max(len(known) * n_tokens, 1) if known else None


class CrossLayerTranscoder(ScaledDecoders, TranscoderSaving):
    """Sparse encoders a layer and triangular decoders: `y_hat[j] = b_dec[j] + sum over i <= j of W_dec[i -> j] z[i]`.

    Encoder l reads the MLP input of layer l: `z[l] = activation(W_enc[l] x[l] + b_enc[l])` (Ameisen et al. 2025,
    "Circuit tracing"; Chatzoudis et al. 2026 for CLIP).

    Inputs and outputs are always in the backbone's own units. Inside, x and y are scaled per layer (`normalize`):
    `W_enc`, `b_enc`, `W_dec`, `b_dec` are in scaled units while training, so that a step of the optimizer is as long at
    every site; `save_pretrained` folds the scales in, exactly. `bias(layer)` is `b_dec` in the backbone's units.

    Attributes:
        W_enc: one `(F, d_model)` per layer.
        b_enc: `(layers, F)`.
        W_dec: one `(F, targets, d_model)` per layer, targets = L - i for cross_layer, else 1. In memory a target's
            block `(F, d_model)` is contiguous, which is what the kernels read; the shape is the public one.
        b_dec: `(layers, d_model)`.
        W_skip: one `(d_out, d_model)` a layer with `skip=True`: a linear path from x[l] to y_hat[l].
        sites: what of a backbone is read and rebuilt, with the topology's own sites where none were named.

    Args:
        n_layers: L, number of sites: MLPs, where no others are named.
        d_model: width of x, and of y unless d_out says another.
        n_features: F, dictionary size of each layer.
        activation: which pre-activations become codes. Default: TopK(64).
        topology: `cross_layer` (a feature writes to its own and every later layer), `per_layer` (to its own only: a
            per-layer transcoder), `sae` (rebuilds what it reads: the MLP output, where no other site is named).
        skip: adds a linear path beside the features (Paulo et al. 2025).
        backend: `auto` chooses the sparse path by measured density, `sparse` and `dense` force one.
        seed: seed of the initial weights; None draws from torch's global generator.
        sites: what of a backbone it reads and rebuilds, and at which blocks; None: `mlp_in` and `mlp_out` of all, or
            `mlp_out` alone for `sae`. Tensors given to the methods below are of these sites.
        d_out: width of y, of `W_dec` and `b_dec`; None: d_model.
        normalize: `layer`: x and y are scaled per layer. `token` (for `sae`): each token is standardised before it is
            read, and the reconstruction brought back to the token's own mean and standard deviation, so that tokens of
            large norm do not have the loss to themselves; codes and decoders are in units of the standardised token.
        n_positions: tokens of an image, [CLS] first; needed where the activation weights [CLS] (`cls_weight` of
            BatchTopK).
    """

    def __init__(
        self,
        n_layers: int,
        d_model: int,
        n_features: int,
        activation: Activation | None = None,
        topology: Topology = "cross_layer",
        skip: bool = False,
        backend: Backend = "auto",
        seed: int | None = None,
        sites: Sites | dict[str, Any] | None = None,
        d_out: int | None = None,
        normalize: Normalize = "layer",
        n_positions: int | None = None,
    ) -> None:
        super().__init__()
        n_layers = whole("n_layers", n_layers, 1)
        d_model, n_features = whole("d_model", d_model, 1), whole("n_features", n_features, 1)
        if topology not in ("cross_layer", "per_layer", "sae"):
            raise UserError(f"topology must be cross_layer, per_layer or sae, got {topology!r}")
        if backend not in ("auto", "sparse", "dense"):
            raise UserError(f"backend must be auto, sparse or dense, got {backend!r}")
        if skip and topology == "sae":
            raise UserError(
                "skip=True makes no sense for topology 'sae': a linear path from y to y rebuilds it exactly"
            )
        self.sites = Sites.from_config(sites).of(topology)
        n_sites = 1 if self.sites.once else n_layers if self.sites.layers is None else len(self.sites.layers)
        if n_sites != n_layers:
            raise UserError(f"n_layers={n_layers}, but {self.sites} are {n_sites}")
        if normalize not in ("layer", "token"):
            raise UserError(f"normalize must be layer or token, got {normalize!r}")
        if normalize == "token" and topology != "sae":
            raise UserError(
                f"normalize='token' is for topology 'sae', not '{topology}': the mean and the scale of what is rebuilt "
                "are known where it is what is read"
            )
        self.normalization: Normalize = normalize
        self.d_out = d_model if d_out is None else whole("d_out", d_out, 1)
        if topology == "sae" and self.d_out != d_model:
            raise UserError(f"d_out={self.d_out}: topology 'sae' rebuilds what it reads, of width {d_model}")
        self.n_layers, self.d_model, self.n_features = n_layers, d_model, n_features
        self.topology, self.skip, self.backend = topology, bool(skip), backend
        # The transcoder owns the activation's parameters: one activation object may build several transcoders
        self.activation = copy.deepcopy(activation) if activation is not None else TopK(64)
        self.activation.build(n_layers, n_features)
        self.n_positions = None if n_positions is None else whole("n_positions", n_positions, 1)
        if self.cls_weight != 1 and self.n_positions is None:
            raise UserError(
                f"{type(self.activation).__name__}: cls_weight={self.cls_weight:g} needs n_positions of the "
                "transcoder: the number of tokens of an image says which one is [CLS]"
            )

        generator = torch.Generator().manual_seed(seed) if seed is not None else None
        self.W_enc = nn.ParameterList(
            torch.randn(n_features, d_model, generator=generator) / d_model**0.5 for _ in range(n_layers)
        )
        self.b_enc = nn.Parameter(torch.zeros(n_layers, n_features))
        # Zero decoders: the first reconstruction is the mean, FVU is 1, and no target is disturbed by chance
        self.W_dec = nn.ParameterList(_decoder(n_features, self.n_targets(i), self.d_out) for i in range(n_layers))
        self.b_dec = nn.Parameter(torch.zeros(n_layers, self.d_out))
        self.W_skip = nn.ParameterList(torch.zeros(self.d_out, d_model) for _ in range(n_layers)) if skip else None

        self.gradients = GradientBuffers()

        self.register_buffer("x_scale", torch.ones(n_layers))
        self.register_buffer("y_scale", torch.ones(n_layers))
        self.register_buffer("y_mean", torch.zeros(n_layers, self.d_out))
        self.register_buffer("y_var", torch.ones(n_layers))
        self.register_buffer("normalized", torch.tensor(False))

    @property
    def cls_weight(self) -> float:
        """What the activation lets a [CLS] token count where codes are chosen."""
        return self.activation.cls_weight

    # -- structure ---------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Plain arguments that build an untrained transcoder of the same form."""
        return {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_features": self.n_features,
            "activation": self.activation.config(),
            "topology": self.topology,
            "skip": self.skip,
            "sites": self.sites.config(),
            "d_out": self.d_out,
            "normalize": self.normalization,
            "n_positions": self.n_positions,
        }

    def extra_repr(self) -> str:
        return (
            f"n_layers={self.n_layers}, d_model={self.d_model}, n_features={self.n_features}, "
            f"topology={self.topology!r}, skip={self.skip}"
        )

    # -- forward -----------------------------------------------------------------------------------------------------
    def forward(
        self,
        x: Float[Tensor, "layers tokens d_in"],
        want_pre: bool = False,
        auxiliary: AuxiliaryRequest | None = None,
        standardised: bool = False,
        cls: Int[Tensor, " n_cls"] | None = None,
    ) -> CLTOutput:
        """The training forward.

        Args:
            x: `(layers, tokens, d_model)` MLP inputs (for `sae`: MLP outputs), in the backbone's units.
            want_pre: keep the pre-activations (the dense path then, since their gradient is dense).
            auxiliary: ask for a second reconstruction from dead features.
            standardised: with `normalize="token"`, x is what `standardised` made, and so is the reconstruction.
            cls: where the activation weights [CLS], `(n,)` int64 which tokens are [CLS]; None: x holds whole
                images, image-major.

        Returns:
            reconstruction, codes and what was asked for.

        Raises:
            UserError: x has another shape.
        """
        self._check_x(x)
        if self.normalization == "token" and not standardised:
            x, mean, std = standardise(x.to(self.b_dec.dtype))
            out = self.forward(x, want_pre, auxiliary, True, cls)
            if out.auxiliary is not None and auxiliary is not None:
                out = replace(out, auxiliary=out.auxiliary * std[:, auxiliary.tokens])
            return replace(out, y_hat=out.y_hat * std + mean)
        with full_precision(x.device.type) as low:
            scaled = self._scale_inputs(x)
            layers = self._encode(scaled, low, want_pre, auxiliary, self._favoured(x.shape[1], x.device, cls))
            codes = Codes([e.pairs for e in layers], [e.values for e in layers])
            pre = [e.pre for e in layers if e.pre is not None] if want_pre else None
            repeated = _share([e.repeated for e in layers], codes.n_tokens)
            if auxiliary is None:
                return CLTOutput(self._decode(codes, scaled, low), codes, pre, repeated=repeated)
            # dead features at work are more tokens of the same decoder: one pass, one gradient of each weight
            dead = Codes([e.dead[0] for e in layers if e.dead], [e.dead[1] for e in layers if e.dead])
            sums = self._decode_features(Codes.cat(codes, dead), low)
            main, extra = sums.split([codes.n_tokens, dead.n_tokens], 1)
            return CLTOutput(self._finish(main, scaled), codes, pre, extra * self.y_scale[:, None, None], repeated)

    def encode(self, x: Float[Tensor, "layers tokens d_in"], cls: Int[Tensor, " n_cls"] | None = None) -> Codes:
        """Codes of MLP inputs `(layers, tokens, d_model)`; `.dense()` gives `(layers, tokens, n_features)`.

        Args:
            x: what is read.
            cls: as `forward` takes it.
        """
        self._check_x(x)
        x = self.standardised(x)
        with full_precision(x.device.type) as low:
            layers = self._encode(self._scale_inputs(x), low, favoured=self._favoured(x.shape[1], x.device, cls))
        return Codes([e.pairs for e in layers], [e.values for e in layers])

    def encode_layer(
        self, x: Float[Tensor, "tokens d_in"], layer: int, cls: Int[Tensor, " n_cls"] | None = None
    ) -> Codes:
        """Codes of one layer alone, as `Codes` of a single layer.

        Args:
            x: `(tokens, d_model)` MLP inputs of that layer.
            layer: which layer.
            cls: as `forward` takes it.
        """
        x = self.standardised(x)
        favoured = self._favoured(len(x), x.device, cls)
        with full_precision(x.device.type) as low:
            encoded = self._encode_alone(x.to(self.b_dec.dtype) * self.x_scale[layer], layer, low, favoured)
        return Codes([encoded.pairs], [encoded.values])

    def decode(
        self,
        codes: Codes | Float[Tensor, "layers tokens features"],
        x: Float[Tensor, "layers tokens d_in"] | None = None,
    ) -> Float[Tensor, "layers tokens d_out"]:
        """Reconstruction `(layers, tokens, d_model)` of codes.

        Args:
            codes: `Codes`, or a dense `(layers, tokens, n_features)` tensor.
            x: MLP inputs; needed with `skip=True`, whose linear path reads them.

        Raises:
            UserError: shapes do not fit, or x is missing.
        """
        codes = self._as_codes(codes)
        if self.skip and x is None:
            raise UserError("this transcoder has a linear skip path: decode(codes, x) needs the MLP inputs x as well")
        if x is not None:
            self._check_x(x)
        if self.normalization == "token":
            if x is None:
                raise UserError("this transcoder standardises each token: decode(codes, x) needs the tokens x as well")
            _, mean, std = standardise(x.to(self.b_dec.dtype))
            with full_precision(codes.device.type) as low:
                return self._decode(codes, None, low) * std + mean
        with full_precision(codes.device.type) as low:
            return self._decode(codes, None if x is None else self._scale_inputs(x), low)

    def contributions(
        self, codes: Codes | Float[Tensor, "layers tokens features"], target: int
    ) -> Float[Tensor, "layers tokens d_out"]:
        """What each source layer adds to the reconstruction of one target layer.

        Args:
            codes: `Codes`, or a dense `(layers, tokens, n_features)` tensor.
            target: layer j in 0..L-1.

        Returns:
            `(layers, tokens, d_model)`, `c[i -> j] = W_dec[i -> j] z[i]` (zero for sources that do not write to j).
            Their sum + `bias(j)` (+ the skip path) is `y_hat[j]`.
        """
        codes = self._as_codes(codes)
        if not 0 <= target < self.n_layers:
            raise UserError(f"target must lie in 0..{self.n_layers - 1}, got {target}")
        terms = self.layer_terms({source: codes.slice(source) for source in range(target + 1)}, target)
        later = terms.new_zeros(self.n_layers - target - 1, codes.n_tokens, self.d_out)
        return torch.cat([terms, later])

    # -- several processes (clt_lightning.parallel); here every feature is at home ------------------------------------
    def sum_over_shards(self, part: Tensor) -> Tensor:
        """The sum over all features of what this process's features add to; differentiable."""
        return part

    def fired(self, codes: Codes) -> Bool[Tensor, "layers features"]:
        """`(layers, n_features)` bool: the features that this process has seen firing."""
        return codes.fired()

    @torch.no_grad()
    def raise_biases(self, features: Bool[Tensor, "layers features"], amount: float) -> None:
        """Adds to the encoder biases of some features, in place.

        Args:
            features: `(layers, n_features)` bool, of all features.
            amount: in units of the pre-activation.
        """
        self.b_enc.add_(features, alpha=amount)

    def gather_codes(self, codes: Codes) -> Codes:
        """The codes of all features, from what the forward gives."""
        return codes

    def whole(self) -> CrossLayerTranscoder | None:
        """A transcoder with all features, for files; None on processes that shall write none. All must call it."""
        return self

    # -- parts -------------------------------------------------------------------------------------------------------
    def _favoured(self, n_tokens: int, device: torch.device, cls: Tensor | None) -> Favoured | None:
        """The [CLS] tokens, where they are weighted."""
        if self.cls_weight == 1:
            return None
        assert self.n_positions is not None
        rows = cls_rows(n_tokens, self.n_positions, device) if cls is None else cls.to(device)
        return Favoured(rows, self.cls_weight) if rows.numel() else None

    def _check_x(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[0] != self.n_layers or x.shape[2] != self.d_model:
            raise UserError(
                f"x must be (layers, tokens, d_model) = ({self.n_layers}, tokens, {self.d_model}), got {tuple(x.shape)}"
            )

    def _as_codes(self, codes: Codes | Tensor) -> Codes:
        if isinstance(codes, Tensor):
            codes = Codes.from_dense(codes)
        if (codes.n_layers, codes.n_features) != (self.n_layers, self.n_features):
            raise UserError(
                f"codes must be ({self.n_layers}, tokens, {self.n_features}) = (layers, tokens, n_features), "
                f"got {tuple(codes.shape)}"
            )
        return codes

    def _decode(self, codes: Codes, scaled: Tensor | None, low: torch.dtype | None) -> Tensor:
        return self._finish(self._decode_features(codes, low), scaled)

    def _finish(self, y: Tensor, scaled: Tensor | None) -> Tensor:
        """From what the features add, in scaled units, to the reconstruction."""
        if self.W_skip is not None:
            assert scaled is not None
            y = y + torch.einsum("lnd,led->lne", scaled, torch.stack(list(self.W_skip)))
        scale = self.y_scale[:, None, None]
        return torch.addcmul(self.b_dec[:, None, :] * scale, y, scale)

    def train(self, mode: bool = True) -> Self:
        """Training mode on or off; off gives the gradients' memory back."""
        if not mode:
            self.gradients.clear()
        return super().train(mode)
