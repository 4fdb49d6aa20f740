"""Reading any site of any block of a frozen model's forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import torch
from jaxtyping import Int
from torch import Tensor

from clt_lightning.backbone.activations import Activations
from clt_lightning.backbone.running import Images, Running
from clt_lightning.backbone.taps import Key, ReadFn
from clt_lightning.core.errors import UserError
from clt_lightning.core.sites import FINAL_SITES, order
from clt_lightning.core.tokens import TokenLayout


class Reading(Running):
    """What `Backbone` reads."""

    def capture(
        self,
        images: Images,
        layers: Iterable[int] | None = None,
        embeddings: bool = False,
        stop: bool = True,
        positions: Int[Tensor, "images n"] | None = None,
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
        once = "final" in sites  # one vector per image
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
        positions: Int[Tensor, "images n"] | None = None,
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
