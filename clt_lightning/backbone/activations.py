"""What is captured from a backbone: what a transcoder reads and what it rebuilds, token by token."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.core.tokens import TokenLayout


def random_positions(
    n_images: int, n_positions: int, n_per_image: int, generator: torch.Generator | None = None
) -> Int[Tensor, "images positions"]:
    """Draw distinct token positions for every image, uniformly.

    Args:
        n_images: number of images.
        n_positions: positions to draw from, [CLS] included.
        n_per_image: positions to draw for each image.
        generator: source of randomness; its device is where the positions are made.

    Returns:
        int64 tensor `(n_images, n_per_image)`, ascending in each row.

    Raises:
        UserError: if more positions are asked for than there are.
    """
    if not 1 <= n_per_image <= n_positions:
        raise UserError(f"cannot draw {n_per_image} of {n_positions} token positions: ask for 1 to {n_positions}")
    device = generator.device if generator is not None else None
    scores = torch.rand(n_images, n_positions, generator=generator, device=device)
    return scores.topk(n_per_image, dim=1).indices.sort(dim=1).values


@dataclass(frozen=True)
class Activations:
    """Inputs and outputs of a transcoder at some layers, paired token by token.

    Attributes:
        x: what is read (outputs of `ln_2`, where nothing else was asked for), `(layers, tokens, d_in)`; token
            `n * n_positions + p` is position p of image n.
        y: what is rebuilt (the MLPs' outputs, LayerScale included), `(layers, tokens, d_out)`, in the order of `x`.
        n_images: number of images.
        n_positions: tokens kept of each image.
        layers: the layer number of each slice of `x` and `y`.
        token_set: which set of tokens is held.
        embeddings: unit-norm image embeddings `(images, embed_dim)` in fp32 from the same forward, if asked for.
        positions: `(images, n_positions)` original position of every token after subsampling; None if the token set
            is whole.
        layout: where each token set stands among the tokens of a whole image; left out: [CLS], then patches.
    """

    x: Float[Tensor, "layers tokens d_in"]
    y: Float[Tensor, "layers tokens d_out"]
    n_images: int
    n_positions: int
    layers: tuple[int, ...]
    token_set: str = "all"
    embeddings: Float[Tensor, "images embed_dim"] | None = None
    positions: Int[Tensor, "images positions"] | None = None
    layout: TokenLayout = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.layout is None:
            object.__setattr__(self, "layout", TokenLayout.plain(self.n_positions))
        expected = (len(self.layers), self.n_images * self.n_positions)
        if tuple(self.x.shape[:2]) != expected or tuple(self.y.shape[:2]) != expected:
            raise ValueError(
                f"x and y must be (layers, images * positions, width) with {expected} in front, "
                f"got x {tuple(self.x.shape)} and y {tuple(self.y.shape)}"
            )

    @property
    def n_tokens(self) -> int:
        """Tokens in each layer: images times positions."""
        return self.n_images * self.n_positions

    def select(self, token_set: str) -> Activations:
        """Keep one token set.

        Args:
            token_set: `cls`, `register`, `patch` or `all`.

        Returns:
            Activations whose `x` and `y` are contiguous; the same object if nothing is dropped.

        Raises:
            UserError: for an unknown set, one that the backbone lacks, or one that is no longer there (after another
                selection or subsampling).
        """
        keep = self.layout.span(token_set)
        if token_set == self.token_set:
            return self
        if self.positions is not None:
            raise UserError(f"cannot select '{token_set}' from subsampled tokens: select first, then subsample")
        if self.token_set != "all":
            raise UserError(f"cannot select '{token_set}': these activations hold the '{self.token_set}' tokens only")

        def cut(t: Tensor) -> Tensor:
            by_image = t.unflatten(1, (self.n_images, self.n_positions))
            found: Tensor = by_image[:, :, keep].flatten(1, 2).contiguous()
            return found

        return replace(self, x=cut(self.x), y=cut(self.y), n_positions=keep.stop - keep.start, token_set=token_set)

    def subsample(self, n_per_image: int, generator: torch.Generator | None = None) -> Activations:
        """Keep random positions of every image, the same ones in every layer and in `x` and `y`.

        Args:
            n_per_image: positions to keep of each image; as many as there are, or more, keeps all.
            generator: source of randomness.

        Returns:
            Activations with `n_positions == n_per_image` and `positions` set.

        Raises:
            UserError: if `n_per_image` is below 1.
        """
        if n_per_image >= self.n_positions:
            return self
        drawn = random_positions(self.n_images, self.n_positions, n_per_image, generator).to(self.x.device)
        offsets = torch.arange(self.n_images, device=drawn.device).unsqueeze(1) * self.n_positions
        index = (offsets + drawn).flatten()
        if self.positions is not None:
            original = self.positions.gather(1, drawn)
        else:
            original = drawn + self.layout.span(self.token_set).start
        return replace(
            self,
            x=self.x.index_select(1, index),
            y=self.y.index_select(1, index),
            n_positions=n_per_image,
            positions=original,
        )
