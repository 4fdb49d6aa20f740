"""Main memory of images on their way through a backbone, for what is said before long work."""

from __future__ import annotations

from clt_lightning.backbone import Backbone

#: What a process takes once, whatever its models: libraries that are loaded late, buffers of threads
ONCE = 40_000_000
#: Tensors of the stream's size at the height of a block: the MLP's hidden layer is four of them, and there are the
#: parts of its activation (up to four times as much), queries, keys, values, attention and the stream itself
_ALIVE = 26
#: Copies of a batch's images: single ones, put together, the batch before, and in the backbone's precision
_COPIES = 4


def forward_bytes(clip: Backbone, images: int) -> int:
    """Bytes of main memory at the height of a forward pass without gradients, about; images and loading included.

    Args:
        clip: the backbone; on a GPU its images alone count.
        images: a batch.
    """
    pictures = 4 * _COPIES * images * 3 * clip.image_size**2
    if clip.device.type != "cpu":
        return pictures
    return pictures + 4 * _ALIVE * images * clip.n_positions * clip.d_model
