"""A backbone with a sparse autoencoder on it, as a module that any downstream code takes."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from clt_lightning.backbone.backbone import Backbone, Images
from clt_lightning.core.errors import UserError

Output = Literal["reconstruction", "codes"]


class BackboneWithSAE(nn.Module):
    """Images to what a sparse autoencoder makes of them: `(images, tokens, d)` rebuilt, or `(images, tokens, F)` codes.

    Nothing in it learns: gradients do not flow, weights are left alone, and both parts stay in eval mode.

    Attributes:
        backbone: the backbone.
        sae: the autoencoder.
        width: size of each token's output.
        grid: patches as (rows, columns).
        preprocess: PIL image -> `(3, image_size, image_size)` tensor.

    Args:
        backbone: a frozen backbone.
        sae: a `CrossLayerTranscoder` of topology `sae` at one site.
        output: `reconstruction`, what a head that read the site would read instead; or `codes`.
        tokens: `all`, `cls`, `register` or `patch`: which tokens, in their order.

    Raises:
        UserError: no autoencoder at one site, one of another width or block, an unknown output or token set.
    """

    def __init__(self, backbone: Backbone, sae: Any, output: Output = "reconstruction", tokens: str = "all") -> None:
        super().__init__()
        if output not in ("reconstruction", "codes"):
            raise UserError(f"output must be reconstruction or codes, got {output!r}")
        if sae.topology != "sae" or sae.n_layers != 1:
            raise UserError(
                f"with_sae takes one autoencoder (topology 'sae', one site), this is a transcoder of topology "
                f"{sae.topology!r} at {sae.n_layers} sites"
            )
        self.site = str(sae.sites.read)
        self.blocks = sae.sites.resolve(backbone.n_layers, backbone.name)
        if len(self.blocks) != 1:
            raise UserError(f"with_sae takes an autoencoder at one block: name it, Sites({self.site!r}, layers=[...])")
        if backbone.site_width(self.site) != sae.d_model:
            raise UserError(
                f"the autoencoder is of width {sae.d_model}, {self.site} of '{backbone.name}' has "
                f"{backbone.site_width(self.site)}"
            )
        span = backbone.tokens.span(tokens)
        if self.site == "final" and tokens != "all":
            raise UserError(f"the site final is one vector per image: tokens must be all, got {tokens!r}")
        self.positions = None if tokens == "all" else torch.arange(span.start, span.stop)
        self.backbone, self.sae, self.output = backbone, sae.eval(), output
        self.width = sae.n_features if output == "codes" else sae.d_out
        self.grid, self.preprocess = backbone.grid, backbone.preprocess

    @torch.no_grad()
    def forward(self, images: Images) -> Tensor:
        """`(images, tokens, width)`; of the site `final` `(images, width)`."""
        batch = self.backbone.check_images(images)
        n = len(batch)
        positions = None if self.positions is None else self.positions.expand(n, -1)
        x = self.backbone.read(batch, self.site, self.blocks, positions)[self.site]
        cls = None  # tokens of whole images; of a part say which are [CLS]
        if self.positions is not None:
            size, first = len(self.positions), bool(self.backbone.has_cls and self.positions[0] == 0)
            cls = torch.arange(0, n * size if first else 0, size)
        found: Tensor = self.sae.encode(x, cls).dense() if self.output == "codes" else self.sae(x, cls=cls).y_hat
        return found[0] if self.site == "final" else found[0].unflatten(0, (n, -1)) if n else found[0][:, None]

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever is asked for."""
        return super().train(False)

    def extra_repr(self) -> str:
        return f"site={self.site!r}, blocks={list(self.blocks)}, output={self.output!r}, width={self.width}"
