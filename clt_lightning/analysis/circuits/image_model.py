"""One image, its transcoder's codes and the linear tower around them: what graphs and interventions start from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from clt_lightning.analysis.circuits.forward import Seen, see
from clt_lightning.analysis.circuits.linear import LinearTower
from clt_lightning.analysis.circuits.open_clip_parts import parts_of
from clt_lightning.analysis.circuits.parts import TowerParts
from clt_lightning.analysis.circuits.read_out import ReadOutRow, Rows, read_out_row
from clt_lightning.analysis.circuits.sources import Sources, skip_matrices
from clt_lightning.analysis.target import Target
from clt_lightning.analysis.tower import at_all_mlps
from clt_lightning.backbone.attention_parts import cast
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder

Skip = Literal["node", "through"]


@dataclass(frozen=True)
class ImageModel:
    """The linear model of one image.

    Attributes:
        clip: the backbone.
        clt: the transcoder.
        image: `(1, 3, size, size)`, in the type of all that is computed.
        parts: the backbone's tower.
        seen: its forward.
        tangent: whether rows are to first order instead of held (`tangent.py`).
        skip: `node`: what the linear skip adds is a source of its own; `through`: the stream passes it. Without a skip,
            both are the same.
        copied: whether the tower's weights are a copy, in another type than the backbone's.
    """

    clip: Any
    clt: CrossLayerTranscoder
    image: Float[Tensor, "1 3 size size"]
    parts: TowerParts
    seen: Seen
    skip: Skip
    tangent: bool = False
    copied: bool = False

    @cached_property
    def tower(self) -> LinearTower:
        """The affine map of the image."""
        skips = skip_matrices(self.clt, self.image) if self.skip == "through" else None
        return LinearTower(self.parts, self.seen, "transcoder", skips, self.tangent)

    @cached_property
    def sources(self) -> Sources:
        """What writes into the stream."""
        nodes = self.skip == "node" and self.clt.W_skip is not None
        return Sources(self.clt, self.tower, nodes, self.parts.read_out.pool != 0)

    def row(self, target: Target, rows: Rows) -> ReadOutRow:
        """How a target reads the last stream."""
        return read_out_row(self.parts, self.seen, target, rows)


@torch.no_grad()
def model_of_image(
    clip: Any,
    clt: CrossLayerTranscoder,
    image: Float[Tensor, "*images 3 size size"] | PIL.Image.Image,
    dtype: torch.dtype = torch.float32,
    skip: Skip = "node",
    tangent: bool = False,
) -> ImageModel:
    """Run one image and hold what the linear model holds.

    Args:
        clip: the backbone.
        clt: its transcoder, on the same device.
        image: `(3, size, size)` or `(1, 3, size, size)`, preprocessed, or a PIL image.
        dtype: the type to compute in: float32, or float64 for books that add up to 1e-10. A bf16 backbone is explained
            by its weights, without the rounding of its stream.
        skip: see `ImageModel`.
        tangent: see `ImageModel`.

    Raises:
        UserError: shapes, transcoder or architecture do not fit.
    """
    if not at_all_mlps(clip, clt):
        raise UserError(
            f"circuits are of transcoders in the place of all MLPs: this one rebuilds {clt.sites.write} at blocks "
            f"{list(check_fit(clip, clt))}"
        )
    if skip not in ("node", "through"):
        raise UserError(f"skip must be node or through, got {skip!r}")
    # inference mode's tensors could not be differentiated later, for tangent rows
    with torch.inference_mode(False):
        prepared = prepared_image(clip, image, dtype)
        own = parts_of(clip)
        parts = cast(own, dtype, clip.device)
        copied = own.blocks[0].attention.out.weight.dtype != dtype
        return ImageModel(clip, clt, prepared, parts, see(parts, parts.embed(prepared)), skip, tangent, copied)


def prepared_image(clip: Any, image: Tensor | PIL.Image.Image, dtype: torch.dtype) -> Tensor:
    """`(1, 3, size, size)` on the backbone's device, in the type that circuits are computed in.

    Raises:
        UserError: another size, NaN, or another type than float32 or float64.
    """
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"circuits are computed in float32 or float64, got {dtype}")
    prepared = image if isinstance(image, Tensor) else clip.preprocess(image.convert("RGB"))
    prepared = prepared[None] if prepared.ndim == 3 else prepared
    size = (1, 3, clip.image_size, clip.image_size)
    if tuple(prepared.shape) != size:
        raise UserError(
            f"a graph is of one image {size[1:]}, got {tuple(prepared.shape)}: pass it through `preprocess`"
        )
    with torch.inference_mode(False):
        prepared = prepared.detach().to(device=clip.device, dtype=dtype, copy=True)
    if not bool(prepared.isfinite().all()):
        raise UserError("the image holds NaN or infinite values")
    return prepared
