"""Forwards of a frozen model: whole ones, the rest of one, and what stands in the place of its sites."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import PIL.Image
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clt_lightning.backbone.attention_parts import AttentionParts
from clt_lightning.backbone.families.base import Readout
from clt_lightning.backbone.frozen import Frozen
from clt_lightning.backbone.taps import Key, OverrideFn
from clt_lightning.core.errors import UserError
from clt_lightning.core.sites import BLOCK_SITES, check_site

Images = Tensor | PIL.Image.Image | Sequence[Tensor | PIL.Image.Image]
"""Preprocessed `(images, 3, size, size)`, one `(3, size, size)`, a PIL image, or a list of single ones."""


class Running(Frozen):
    """What `Backbone` runs."""

    def forward(self, images: Images) -> Float[Tensor, "images embed_dim"]:
        """The same as `encode_image(images)`."""
        return self.encode_image(images)

    def run(self, images: Images, normalize: bool = True, grad: bool = False) -> Float[Tensor, "images embed_dim"]:
        """The same as `encode_image(...)`."""
        return self.encode_image(images, normalize, grad)

    def encode_image(
        self, images: Images, normalize: bool = True, grad: bool = False
    ) -> Float[Tensor, "images embed_dim"]:
        """Embed images: the numbers of the library's own model.

        Args:
            images: `(images, 3, image_size, image_size)`, preprocessed; or a PIL image, or a list of either.
            normalize: scale every embedding to length 1.
            grad: let gradients flow to what an override puts in (the weights stay frozen either way).

        Returns:
            `(images, embed_dim)` in fp32 (fp64 of a backbone of that precision).

        Raises:
            UserError: if the images have another shape.
        """
        images = self.check_images(images)
        if len(images) == 0:  # an evaluation with fewer samples than processes ends in such a batch
            return self._no_embeddings()
        with self.running(grad):
            return self._finished(self.family.encode(images), normalize)

    def run_from(
        self, layer: int, stream: Float[Tensor, "images positions d"], normalize: bool = True, grad: bool = False
    ) -> Float[Tensor, "images embed_dim"]:
        """The rest of a forward: blocks `layer` to the last, pooling, projection; active overrides hold in it.

        Args:
            layer: the first block to run; `n_layers` runs none.
            stream: `(images, positions, d_model)` at the entry of that block; after the last block [CLS] alone will do
                where the embedding is read from it.
            normalize: scale every embedding to length 1.
            grad: let gradients flow to the stream and to what an override puts in.

        Returns:
            `(images, embed_dim)`: for an unchanged stream the numbers of `encode_image`.

        Raises:
            UserError: a stream of another shape, or no such layer.
        """
        if not 0 <= layer <= self.n_layers:
            raise UserError(f"run_from: layer must lie in 0..{self.n_layers}, got {layer}")
        # an embedding that is read from [CLS] needs no other token after the last block
        alone = layer == self.n_layers and stream.ndim == 3 and stream.shape[1] >= 1 and self.readout() is not None
        positions = stream.shape[1] if alone else self.n_positions
        if stream.ndim != 3 or tuple(stream.shape[1:]) != (positions, self.d_model):
            raise UserError(
                f"run_from: the stream must be (images, positions, d_model) = (images, {self.n_positions}, "
                f"{self.d_model}), got {tuple(stream.shape)}"
            )
        with self.running(grad):
            stream = self.family.run_blocks(layer, stream.to(self.dtype))
            return self._finished(self.family.after(stream), normalize)

    def readout(self) -> Readout | None:
        """How the embedding is read from [CLS]; None where other tokens are pooled or no LayerNorm is before it."""
        return self.family.readout()

    @contextmanager
    def running(self, grad: bool) -> Iterator[None]:
        """The backbone's own precision, whatever autocast surrounds it; gradients only where asked for and allowed."""
        with self.taps.running(self.device, grad):
            yield

    @contextmanager
    def override(self, site: str, fn: OverrideFn, layers: Iterable[int] | None = None) -> Iterator[None]:
        """While active, `fn` makes a site's tensor in every listed block.

        Args:
            site: any of `core.sites.SITES`.
            fn: `fn(layer, x, compute) -> tensor`. `compute()` is the site's own tensor, paid for only if called; `x` is
                what it is computed from, on the running (already modified) stream: the stream for `attn_in`,
                `resid_mid`, `mlp_in`, `resid_post` and `final_tokens`, `attn_in` for `attn_out`, `mlp_in` for
                `mlp_out`, and the tensor itself for `resid_pre`, `attn_z` and `final`. All are
                `(images, positions, d_model)` (`final`: `(images, embed_dim)`) in the model's dtype, to which the
                result is cast. The caller's autocast setting holds inside `fn`, not around it.
            layers: blocks to override; None for all. Of nested overrides of a site the innermost wins, layer by layer.

        Raises:
            UserError: unknown layers or site, or if `fn` returns another shape than `x`'s.
        """
        with self.taps.override(fn, self._keys(site, layers)):
            yield

    @contextmanager
    def mlp_override(self, fn: OverrideFn, layers: Iterable[int] | None = None) -> Iterator[None]:
        """While active, `fn` makes what the MLP branch of every listed block adds to the residual stream.

        The same as `override("mlp_out", fn, layers)`.
        """
        with self.override("mlp_out", fn, layers):
            yield

    def check_layers(self, layers: Iterable[int] | None) -> tuple[int, ...]:
        """Layer numbers as a tuple; None means all. Raises a UserError for unknown, repeated or no layers."""
        if layers is None:
            return tuple(range(self.n_layers))
        wanted = tuple(int(layer) for layer in layers)
        if not wanted:
            raise UserError("the list of layers is empty")
        if len(set(wanted)) != len(wanted):
            raise UserError(f"layers {list(wanted)} name a layer twice")
        unknown = [layer for layer in wanted if not 0 <= layer < self.n_layers]
        if unknown:
            raise UserError(f"layers {unknown} do not exist: '{self.name}' has layers 0 to {self.n_layers - 1}")
        return wanted

    def attention_parts(self, layer: int) -> AttentionParts:
        """The numbers of a block's attention; `attention_pattern` makes its pattern of `attn_in`.

        Raises:
            UserError: an attention of a form that is not known.
        """
        return self.family.attention_parts(self.check_layers([layer])[0], self.name)

    def site_width(self, site: str) -> int:
        """Size of a site's vectors: d_model, but embed_dim of `final`, and of `attn_z` that of all heads together.

        Raises:
            UserError: no such site, or not in this backbone.
        """
        if check_site(site) == "attn_z":
            return self._z_width()
        return self.embed_dim if site == "final" else self.d_model

    def _z_width(self) -> int:
        widths = {self.family.z_width(block) for block in self.blocks}
        if len(widths) != 1 or None in widths:
            raise UserError(
                f"'{self.name}' has no one projection behind its heads, so attn_z cannot be told apart: take attn_out"
            )
        return int(widths.pop() or 0)

    def check_images(self, images: Images) -> Float[Tensor, "images 3 size size"]:
        """Preprocessed images as one batch, in the backbone's type and on its device.

        Raises:
            UserError: none, or images of another shape.
        """
        if not isinstance(images, Tensor):
            several = list(images) if isinstance(images, Sequence) else [images]
            if not several:
                raise UserError("no image was given")
            images = torch.stack([i if isinstance(i, Tensor) else self.preprocess(i.convert("RGB")) for i in several])
        elif images.ndim == 3:
            images = images[None]
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.image_size, self.image_size):
            raise UserError(
                f"'{self.name}' reads images of shape (images, 3, {self.image_size}, {self.image_size}), got "
                f"{tuple(images.shape)}: pass them through its `preprocess`"
            )
        return images.to(device=self.device, dtype=self.dtype)

    def _finished(self, pooled: Tensor, normalize: bool) -> Tensor:
        pooled = self.taps.at("final", pooled, lambda: pooled)
        pooled = pooled if pooled.dtype == torch.float64 else pooled.float()
        return F.normalize(pooled, dim=-1) if normalize else pooled

    def _no_embeddings(self) -> Tensor:
        return torch.zeros(0, self.embed_dim, device=self.device)

    def _keys(self, site: str, layers: Iterable[int] | None) -> list[Key]:
        if check_site(site) == "attn_z":
            self._z_width()
        if site in BLOCK_SITES:
            return [(site, layer) for layer in self.check_layers(layers)]
        if site == "final_tokens" and self.family.norm is None:
            raise UserError(f"'{self.name}' has no norm over its last tokens: take resid_post for final_tokens")
        return [(site, 0)]
