"""What circuits are made of, layer by layer: a transcoder's features, or the plain dimensions of a site.

Both are seen alike: codes of every layer, dense, what they write into the site, and what is left over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder
from clt_lightning.transcoder.normalization import standardise


class Dictionary(Protocol):
    """Units of every layer of a site.

    Attributes:
        read: the site that codes are read from; `write`: the one that they rebuild.
        blocks: the backbone's block of each layer.
        n_features: units of a layer.
        d: width of what is rebuilt.
    """

    read: str
    write: str
    blocks: tuple[int, ...]
    n_features: int
    d: int

    def encode(self, layer: int, x: Tensor) -> Tensor:
        """`(tokens, n_features)` dense codes of what is read, `(tokens, d_model)`."""
        ...

    def written(self, layer: int, codes: Sequence[Tensor], x: Tensor) -> Tensor:
        """`(tokens, d)`: what the codes of layers 0 to `layer` write into this one, without what is no unit's."""
        ...

    def rest(self, layer: int, x: Tensor) -> Tensor:
        """`(tokens, d)`, or what broadcasts to it: what is rebuilt without any unit."""
        ...


class Features:
    """A transcoder's features; see `Dictionary`.

    Args:
        clip: the backbone.
        clt: the transcoder.

    Raises:
        UserError: they do not fit, or the site is after the last block.
    """

    def __init__(self, clip: Backbone, clt: CrossLayerTranscoder) -> None:
        if clt.sites.once:
            raise UserError(f"circuits go through the layers: a transcoder at {clt.sites.read} has one")
        self.clt = clt
        self.read, self.write = str(clt.sites.read), str(clt.sites.write)
        if self.read != self.write and (self.read, self.write) != ("mlp_in", "mlp_out"):
            raise UserError(
                f"units are masked where a transcoder rebuilds what it reads, or MLPs: not from {self.read} to "
                f"{self.write}"
            )
        self.blocks = check_fit(clip, clt)
        self.n_features, self.d = clt.n_features, clt.d_out

    def encode(self, layer: int, x: Tensor) -> Tensor:
        return self.clt.encode_layer(x, layer).dense_layer(0).detach()

    def written(self, layer: int, codes: Sequence[Tensor], x: Tensor) -> Tensor:
        clt = self.clt
        total = x.new_zeros(len(x), self.d, dtype=clt.b_dec.dtype)
        for source in range(layer + 1):
            if clt.writes(source, layer):
                total = total + codes[source] @ (clt.W_dec[source].detach()[:, layer - source] * clt.y_scale[layer])
        return clt.in_units(total, x)

    def rest(self, layer: int, x: Tensor) -> Tensor:
        return self.clt.rest_term(x, layer).detach()

    def decoder_norms(self, layer: int) -> Tensor:
        """`(n_features,)`: length of what one more unit of a code writes, over all layers that it writes into."""
        clt = self.clt
        scales = clt.y_scale[layer : layer + clt.n_targets(layer)]
        result: Tensor = (clt.W_dec[layer].detach() * scales[None, :, None]).square().sum((1, 2)).sqrt()
        return result

    def sizes(self, layer: int, x: Tensor) -> Tensor:
        """`(tokens, 1)`, or 1: what a token's codes are multiplied by when they are written."""
        return standardise(x)[2] if self.clt.normalization == "token" else x.new_ones(())


class Dimensions:
    """A site's own dimensions as units: the arm `neurons`. Codes are the numbers themselves, and nothing is left over.

    Args:
        clip: the backbone.
        site: which site.
        blocks: at which blocks.
    """

    def __init__(self, clip: Backbone, site: str, blocks: Sequence[int]) -> None:
        self.read = self.write = site
        self.blocks = tuple(blocks)
        self.n_features = self.d = clip.d_model

    def encode(self, layer: int, x: Tensor) -> Tensor:
        return x

    def written(self, layer: int, codes: Sequence[Tensor], x: Tensor) -> Tensor:
        return codes[layer]

    def rest(self, layer: int, x: Tensor) -> Tensor:
        return x.new_zeros(())


@dataclass(frozen=True)
class Observed:
    """The untouched model on a batch of images, as a dictionary sees it.

    Attributes:
        entry: the stream at the entry of the dictionary's first block, `(images, positions, d_model)`.
        x: by layer, `(images * positions, d_model)`: what codes are read from.
        codes: by layer, `(images * positions, n_features)`.
        errors: by layer, `(images * positions, d)`: the site less what is rebuilt.
        embeddings: `(images, embed_dim)`, unit length.
    """

    entry: Tensor
    x: list[Tensor]
    codes: list[Tensor]
    errors: list[Tensor]
    embeddings: Tensor

    @property
    def n_images(self) -> int:
        return len(self.entry)


@torch.no_grad()
def observe_units(clip: Backbone, dictionary: Dictionary, images: Tensor) -> Observed:
    """One untouched forward.

    Args:
        clip: the backbone.
        dictionary: whose codes are wanted.
        images: `(images, 3, size, size)`, preprocessed.
    """
    entry: list[Tensor] = []
    with clip.watch(lambda _, stream: entry.append(stream), [dictionary.blocks[0]], "resid_pre"):
        acts = clip.capture(images, dictionary.blocks, embeddings=True, sites=(dictionary.read, dictionary.write))
    assert acts.embeddings is not None
    kind = torch.float64 if clip.dtype == torch.float64 else torch.float32
    x, y = acts.x.to(kind), acts.y.to(kind)
    codes: list[Tensor] = []
    errors: list[Tensor] = []
    for layer in range(len(dictionary.blocks)):
        codes.append(dictionary.encode(layer, x[layer]))
        rebuilt = dictionary.rest(layer, x[layer]) + dictionary.written(layer, codes, x[layer])
        errors.append(y[layer] - rebuilt)
    return Observed(entry[0], list(x), codes, errors, acts.embeddings)
