"""The frozen backbone: any Vision Transformer, with windows into every site of every block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, Self

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clt_lightning.backbone.activations import Activations
from clt_lightning.backbone.attention_parts import AttentionParts
from clt_lightning.backbone.class_head import ClassHead
from clt_lightning.backbone.families.base import Family, Readout
from clt_lightning.backbone.taps import Key, OverrideFn, ReadFn, Taps
from clt_lightning.core.errors import UserError, setting
from clt_lightning.core.sites import BLOCK_SITES, FINAL_SITES, check_site, order
from clt_lightning.core.tokens import TokenLayout

if TYPE_CHECKING:
    from clt_lightning.backbone.head import BackboneWithSAE, Output

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
Precision = Literal["fp32", "bf16", "fp64"]
Images = Tensor | PIL.Image.Image | Sequence[Tensor | PIL.Image.Image]
"""Preprocessed `(images, 3, size, size)`, one `(3, size, size)`, a PIL image, or a list of single ones."""


class Backbone(nn.Module):
    """A Vision Transformer that never changes: no gradients, eval mode for ever, its own precision.

    Its weights are kept out of everything that a parent module does with parameters: they appear in no `parameters()`,
    no `state_dict()`, no DDP bucket, and `.half()`, `.double()` or a precision plugin do not touch them. Device moves
    do.

    Args:
        family: the model in parts.
        name: what it is called.
        pretrained: where its weights come from; None for random ones.
        precision: the type of its weights.

    Attributes:
        family: the model in parts.
        n_layers: residual blocks.
        d_model: width of the residual stream.
        tokens: which positions are [CLS], registers and patches.
        n_positions: tokens of an image.
        n_prefix: tokens before the patches; `n_registers`: those that are neither [CLS] nor patches; `has_cls`.
        grid: patches as (rows, columns).
        image_size: side of the square input in pixels.
        embed_dim: size of the pooled embedding.
        preprocess: evaluation transform, PIL image -> `(3, image_size, image_size)` float32 tensor.
        mean: per channel, what `preprocess` subtracts; `std`: what it divides by.
        blocks: the residual blocks; `batch_first`: whether they take `(images, positions, d_model)`, not
            `(positions, images, d_model)`.
        logit_scale: the factor on cosine similarities in `logits`, 100 as in CLIP's zero-shot protocol.
        has_text: whether it embeds texts as well.
    """

    has_text = False
    #: Arguments by place and by name of the call that made it; None: it was made by other hands
    made_with: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    #: Class logits without a text tower (`use_head`)
    class_head: ClassHead | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        # a run records what its backbone was made with, whatever class it is of
        object.__setattr__(self, "made_with", (args, kwargs))
        return self

    def __init__(self, family: Family, name: str, pretrained: str | None, precision: str) -> None:
        super().__init__()
        family.model.requires_grad_(False).eval()
        # not through nn.Module's attribute setting: a registered child would appear in parameters() and state_dict()
        object.__setattr__(self, "_model", family.model)
        self.family = family
        self.name, self.pretrained, self.precision = name, pretrained, precision
        self.blocks: list[nn.Module] = family.blocks
        self.n_layers, self.d_model = len(family.blocks), family.d_model
        self.tokens = family.tokens
        self.n_positions, self.n_prefix = self.tokens.n_positions, self.tokens.n_prefix
        self.has_cls, self.n_registers = self.tokens.has_cls, self.tokens.n_registers
        self.grid, self.image_size = family.grid, family.image_size
        self.embed_dim = family.embed_dim
        self.logit_scale = 100.0
        self.preprocess, self.mean, self.std = family.transform()
        self.taps = Taps(family)
        self._sha256: str | None = None

    # -- frozen for ever ---------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The library's own module."""
        return self.__dict__["_model"]

    @property
    def batch_first(self) -> bool:
        return self.family.batch_first

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The type of the residual stream, so of captured activations."""
        return PRECISIONS[self.precision]

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever is asked for."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Stay frozen, whatever is asked for."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.to()`, `.cuda()`, `.double()` of a parent all end here. Ask where `fn` would put a tensor, and follow it in
        # device only: the precision is the backbone's own
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        target = fn(torch.empty(0, device=self.device)).device
        if target != self.device:
            self.model.to(target)
        return self

    # -- forwards ----------------------------------------------------------------------------------------------------

    def forward(self, images: Images) -> Tensor:
        """The same as `encode_image(images)`."""
        return self.encode_image(images)

    def run(self, images: Images, normalize: bool = True, grad: bool = False) -> Tensor:
        """The same as `encode_image(...)`."""
        return self.encode_image(images, normalize, grad)

    def encode_image(self, images: Images, normalize: bool = True, grad: bool = False) -> Tensor:
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

    def run_from(self, layer: int, stream: Tensor, normalize: bool = True, grad: bool = False) -> Tensor:
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

    def logits(self, embeddings: Tensor, head: Tensor) -> Tensor:
        """Class logits `(images, classes)`: cosine similarities times `logit_scale`, in fp32."""
        return self.logit_scale * (embeddings.float() @ head.float().to(embeddings.device))

    def readout(self) -> Readout | None:
        """How the embedding is read from [CLS]; None where other tokens are pooled or no LayerNorm is before it."""
        return self.family.readout()

    @property
    def head(self) -> str:
        """What makes class logits of an embedding: `zero_shot`, a head that was given (`use_head`: a linear `probe`, or
        the model's own `classifier`), the model's own `classifier` where none was, or `none`.
        """
        if self.has_text:
            return "zero_shot"
        if self.class_head is not None:
            return self.class_head.kind
        return "none" if self.family.classifier() is None else "classifier"

    def use_head(self, head: ClassHead | None) -> None:
        """Takes class logits from a head of `probe` from now on, in the place of a text tower.

        Raises:
            UserError: the head was made for another backbone.
        """
        if head is not None:
            head.check(self.embed_dim, head.classnames, str(self.describe()["weights_sha256"]))
        self.class_head = head

    def names_classes(self, classnames: Sequence[str] | None, templates: Sequence[Any] | None) -> bool:
        """Whether `head_for` gives logits of these classes: a text tower and prompts, or a head of `probe`."""
        return bool(classnames) and (bool(templates) if self.has_text else self.class_head is not None)

    def head_for(self, classnames: Sequence[str], templates: Sequence[Any]) -> Tensor:
        """Of some classes, what makes logits of unit embeddings: the zero-shot head, or the head that was given.

        Args:
            classnames: one name a class.
            templates: prompts, which a backbone without a text tower does not need.

        Returns:
            `(embed_dim, classes)` in fp32.

        Raises:
            UserError: there is neither, or the head that was given is of other classes.
        """
        if self.has_text or self.class_head is None:
            return self.zero_shot_head(classnames, templates)
        found = self.class_head.check(self.embed_dim, classnames, self.class_head.weights_sha256)
        return found.matrix.to(self.device)

    def classifier(self) -> tuple[Tensor, Tensor]:
        """The model's own linear classifier of embeddings that are not normalised.

        Returns:
            `(embed_dim, classes)` and `(classes,)` in fp32.

        Raises:
            UserError: it has none.
        """
        found = self.family.classifier()
        if found is None:
            raise UserError(f"'{self.name}' has no classifier of its own")
        bias = torch.zeros(found.out_features) if found.bias is None else found.bias
        return found.weight.detach().float().T, bias.detach().float()

    @contextmanager
    def running(self, grad: bool) -> Iterator[None]:
        """The backbone's own precision, whatever autocast surrounds it; gradients only where asked for and allowed."""
        with self.taps.running(self.device, grad):
            yield

    # -- reading -----------------------------------------------------------------------------------------------------

    def capture(
        self,
        images: Images,
        layers: Iterable[int] | None = None,
        embeddings: bool = False,
        stop: bool = True,
        positions: Tensor | None = None,
        sites: tuple[str, str] = ("mlp_in", "mlp_out"),
    ) -> Activations:
        """Run images through the tower and keep what a transcoder reads and rebuilds: the MLPs' inputs and outputs.

        Under an active override, x is read from the modified stream and y is what was added in fact. No gradients.

        Args:
            images: `(images, 3, image_size, image_size)`, preprocessed; or a PIL image, or a list of either.
            layers: layers to keep, in the order wanted; None for all.
            embeddings: also return the images' embeddings, from the same forward.
            stop: end the forward after the last layer needed, unless embeddings are asked for.
            positions: int64 `(images, n)` token positions to keep of every image (see
                `activations.random_positions`); None for all. Only the kept tokens are written.
            sites: what x and y are.

        Returns:
            Activations in the model's dtype; tokens are image-major.

        Raises:
            UserError: wrong image shape, unknown layer or site, positions out of range, or a site that an override
                keeps from being computed.
        """
        images = self.check_images(images)
        found, kept, pooled = self._collect(images, sites, layers, embeddings, stop, positions)
        wanted = (0,) if sites[0] in FINAL_SITES else self.check_layers(layers)
        once = "final" in sites  # one vector an image
        return Activations(
            found[sites[0]],
            found[sites[1]],
            len(images),
            1 if once else kept,
            wanted,
            embeddings=pooled,
            positions=None if positions is None else positions.to(self.device),
            layout=TokenLayout(0) if once else self.tokens,
        )

    def read(
        self,
        images: Images,
        sites: Sequence[str] | str,
        layers: Iterable[int] | None = None,
        positions: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run images through the tower and keep some sites. No gradients; active overrides hold.

        Args:
            images: `(images, 3, image_size, image_size)`, preprocessed; or a PIL image, or a list of either.
            sites: any of `core.sites.SITES`.
            layers: layers to keep, in the order wanted; None for all. `final_tokens` and `final` have one.
            positions: int64 `(images, n)` token positions to keep of every image; None for all.

        Returns:
            by site `(layers, images * positions, d_model)` in the model's dtype, image-major; `final`:
            `(1, images, embed_dim)`, not normalised.

        Raises:
            UserError: wrong image shape, unknown layer or site, positions out of range, or a site that an override
                keeps from being computed.
        """
        names = (sites,) if isinstance(sites, str) else tuple(sites)
        return self._collect(self.check_images(images), names, layers, False, True, positions)[0]

    @contextmanager
    def watch(self, fn: ReadFn, layers: Iterable[int] | None = None, site: str = "mlp_in") -> Iterator[None]:
        """While active, `fn(layer, tensor)` sees a site of each listed block; nothing is changed.

        Args:
            fn: called with the layer and the site's tensor, `(images, positions, d_model)`, on the running stream:
                what an override gave, where one is at work.
            layers: blocks to watch; None for all.
            site: any of `core.sites.SITES`.

        Raises:
            UserError: unknown layers or site.
        """
        with self.taps.read(fn, self._keys(site, layers)):
            yield

    def with_sae(self, sae: Any, output: Output = "reconstruction", tokens: str = "all") -> BackboneWithSAE:
        """A module from images to what a sparse autoencoder makes of them (`head.BackboneWithSAE`).

        Args:
            sae: a `CrossLayerTranscoder` of topology `sae` at one site.
            output: `reconstruction`, `(images, tokens, d)`, or `codes`, `(images, tokens, n_features)`.
            tokens: `all`, `cls`, `register` or `patch`: which tokens.
        """
        from clt_lightning.backbone.head import BackboneWithSAE

        return BackboneWithSAE(self, sae, output, tokens)

    # -- overriding --------------------------------------------------------------------------------------------------

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

    # -- texts -------------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """Of a backbone with a text tower."""
        raise self._no_text("it has no tokenizer")

    def encode_text(self, texts: Any) -> Tensor:
        """Of a backbone with a text tower."""
        raise self._no_text("it cannot embed texts")

    def embed_names(self, *args: Any, **kwargs: Any) -> Tensor:
        """Of a backbone with a text tower."""
        raise self._no_text("it cannot embed names")

    def zero_shot_head(self, *args: Any, **kwargs: Any) -> Tensor:
        """Of a backbone with a text tower."""
        raise self._no_text(
            "there are no zero-shot classes (`python -m clt_lightning probe --run ...` learns a head from labels)"
        )

    def zero_shot_doubts(self, *args: Any, **kwargs: Any) -> list[str]:
        """Of a backbone with a text tower."""
        raise self._no_text("there are no zero-shot classes")

    def _no_text(self, so: str) -> UserError:
        return UserError(f"'{self.name}' has no text tower: {so}")

    # -- the record --------------------------------------------------------------------------------------------------

    @property
    def has_random_weights(self) -> bool:
        """Whether no weights were loaded."""
        return self.pretrained is None

    def describe(self) -> dict[str, Any]:
        """What a run records of its backbone: plain values, ready for JSON."""
        if self._sha256 is None:
            self._sha256 = _hash_weights(self.model)
        return {
            "name": self.name,
            "pretrained": self.pretrained,
            "precision": self.precision,
            "weights_sha256": self._sha256,
            "embed_dim": self.embed_dim,
            "image_size": self.image_size,
            "grid": list(self.grid),
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "has_cls": self.has_cls,
            "n_registers": self.n_registers,
        }

    def extra_repr(self) -> str:
        return (
            f"{self.name!r}, pretrained={self.pretrained!r}, precision={self.precision!r}, n_layers={self.n_layers}, "
            f"d_model={self.d_model}, n_positions={self.n_positions}"
        )

    # -- inside ------------------------------------------------------------------------------------------------------

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

    def _collect(
        self,
        images: Tensor,
        sites: Sequence[str],
        layers: Iterable[int] | None,
        embeddings: bool,
        stop: bool,
        positions: Tensor | None,
    ) -> tuple[dict[str, Tensor], int, Tensor | None]:
        """The sites' tensors, tokens kept of an image, and the embeddings if they are asked for."""
        layers = None if layers is None else tuple(layers)
        index, kept = self._token_index(positions, len(images))
        keys = {site: self._keys(site, layers) for site in sites}
        found = {site: self._room(site, len(of), len(images), kept) for site, of in keys.items()}
        if len(images) == 0:
            return found, kept, self._no_embeddings() if embeddings else None
        rows = {
            key: (found[site][i], index if site != "final" else None)
            for site, of in keys.items()
            for i, key in enumerate(of)
        }
        missing = set(rows)
        last = max(rows, key=lambda key: order(*key)) if stop and not embeddings else None
        depth = self.taps.depth + 1
        pooled = None
        with ExitStack() as stack:
            for site, of in keys.items():
                stack.enter_context(self.taps.read(self._writer(site, rows, missing, depth, last), of))
            with suppress(_ForwardDone):
                pooled = self.encode_image(images)
        if missing:
            site, layer = min(missing, key=lambda key: order(*key))
            raise UserError(f"{site} of layer {layer} was not computed: an override stands in the place of the block")
        return found, kept, pooled if embeddings else None

    def _room(self, site: str, n_layers: int, n_images: int, kept: int) -> Tensor:
        tokens = n_images if site == "final" else n_images * kept
        return torch.empty(n_layers, tokens, self.site_width(site), dtype=self.dtype, device=self.device)

    def _writer(
        self,
        site: str,
        rows: dict[Key, tuple[Tensor, Tensor | None]],
        missing: set[Key],
        depth: int,
        last: Key | None,
    ) -> ReadFn:
        def write(layer: int, tensor: Tensor) -> None:
            if self.taps.depth != depth:
                return  # a forward inside the one that is read
            key = (site, layer)
            row, index = rows[key]
            tokens = tensor.detach().reshape(-1, row.shape[1])
            if index is None:
                row.copy_(tokens)
            else:
                torch.index_select(tokens, 0, index, out=row)
            missing.discard(key)
            if key == last:
                raise _ForwardDone

        return write

    def check_images(self, images: Images) -> Tensor:
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

    def _token_index(self, positions: Tensor | None, n_images: int) -> tuple[Tensor | None, int]:
        if positions is None:
            return None, self.n_positions
        if positions.ndim != 2 or len(positions) != n_images:
            raise UserError(f"positions must be (images, n) = ({n_images}, n), got {tuple(positions.shape)}")
        if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < self.n_positions:
            raise UserError(f"positions must lie in 0..{self.n_positions - 1}, got up to {int(positions.max())}")
        offsets = torch.arange(n_images, device=positions.device).unsqueeze(1) * self.n_positions
        return (offsets + positions).flatten().to(self.device), positions.shape[1]


class _ForwardDone(Exception):  # noqa: N818  (a signal, not an error)
    """Raised by the last reader: nothing that comes after in the forward is needed."""


def check_precision(precision: str) -> str:
    """A precision's name as it is.

    Raises:
        UserError: it is none.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"{setting('precision')}: '{precision}' is not known for the backbone: choose one of "
            f"{', '.join(PRECISIONS)}"
        )
    return precision


def _hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
