"""Which features a planted cue moves, measured on twins: pictures that are the same but for the cue.

Nothing of a method's is used: no head, no gradient, no training image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clt_lightning.backbone import Backbone
from clt_lightning.core.progress import Progress
from clt_lightning.data.worlds.spurious import Spurious
from clt_lightning.interventions.replacement import check_fit
from clt_lightning.transcoder import CrossLayerTranscoder

#: Renders of no split
SEED = 4 * 10**12
#: Consistency from which on a feature carries the cue
CARRIES = 0.5
#: Columns that are ranked at once
_COLUMNS = 256


@torch.no_grad()
def cue_truth(
    clip: Backbone,
    clt: CrossLayerTranscoder,
    spurious: Spurious,
    pairs: int = 200,
    size: int = 48,
    seed: int = SEED,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """How consistently every feature's mean code over an image is larger with one value of the cue than with the other.

    1: in every pair of twins; 0: as often larger as smaller, or never different.

    Args:
        clip: the backbone.
        clt: the transcoder.
        spurious: the planted world.
        pairs: twins.
        size: side of a render in pixels.
        seed: of the renders.
        progress: say how far it is.

    Returns:
        `(layers, F)` consistency, and `(layers, F)` bool: features that are on in any of these images.
    """
    sites = str(clt.sites.read), str(clt.sites.write)
    blocks = check_fit(clip, clt)
    codes: tuple[list[Tensor], list[Tensor]] = ([], [])
    with Progress("twins", pairs, "pairs", show=progress) as bar:
        for start in range(0, pairs, 32):
            some = range(start, min(start + 32, pairs))
            for value in (0, 1):
                renders = [
                    spurious.render("test", seed, i, size=size, group=2 * (i % 2) + value)[0].image for i in some
                ]
                images = torch.stack([clip.preprocess(image) for image in renders]).to(clip.device)
                acts = clip.capture(images, blocks, sites=sites)
                x = acts.y if clt.topology == "sae" else acts.x
                rows = [
                    clt.encode_layer(x[layer], layer).dense_layer(0).unflatten(0, (len(images), -1)).mean(1)
                    for layer in range(clt.n_layers)
                ]
                codes[value].append(torch.stack(rows, 1).cpu())
            bar.update(len(some))
    without, with_ = (torch.cat(part) for part in codes)
    # twins are pairs: what is the same in both says nothing
    found: Tensor = (with_ - without).sign().mean(0).abs()
    return found, ((without != 0) | (with_ != 0)).any(0)


def auroc(positive: Tensor, negative: Tensor) -> Tensor:
    """`(columns,)`: the chance that a row of one is above a row of the other, ties counting half.

    Args:
        positive: `(n, columns)`.
        negative: `(m, columns)`.
    """
    n, m = len(positive), len(negative)
    total = rank_sums(torch.cat([positive, negative]), torch.arange(n + m)[None] < n)[0]
    return ((total - n * (n + 1) / 2) / (n * m)).float()


def rank_sums(rows: Tensor, members: Tensor) -> Tensor:
    """`(sets, columns)`: the sum over each set's rows of where they stand in a column, from 1; ties share their places.

    Args:
        rows: `(n, columns)`.
        members: `(sets, n)` bool.
    """
    found = []
    for part in rows.split(_COLUMNS, 1):
        columns = part.T.contiguous()
        ordered = columns.sort(1).values
        low = torch.searchsorted(ordered, columns)
        high = torch.searchsorted(ordered, columns, right=True)
        found.append(members.double() @ ((low + high + 1).T.double() / 2))
    return torch.cat(found, 1)
