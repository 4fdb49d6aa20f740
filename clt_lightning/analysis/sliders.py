"""Steering that follows a hand: images whose streams are kept, so that a moved feature runs the rest of the tower."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clt_lightning.analysis.steering import BASES, Edit, check_edits, steered
from clt_lightning.analysis.tower import advance, finish, observe
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import replaced
from clt_lightning.transcoder import CrossLayerTranscoder


@dataclass(frozen=True)
class Part:
    """Some of the images, steered.

    Attributes:
        rows: which images.
        before: `(rows, classes)` fp64 probabilities of the base model.
        after: the same with the edits.
    """

    rows: range
    before: Tensor
    after: Tensor


class SteeredImages:
    """Images whose class probabilities are asked for again and again, with other edits each time.

    Of the original model the residual stream is kept where it enters the first block and where it enters the first
    edited one: a change of values runs the blocks from there on. The model with all MLPs replaced is run from the first
    block. Memory: two streams, `8 x images x positions x d_model` bytes.

    Args:
        clip: the backbone.
        clt: the transcoder.
        head: `(embed_dim, classes)` from `clip.zero_shot_head`.
        images: batches `(n, 3, size, size)`, preprocessed; a part is as large as its batch.

    Raises:
        UserError: transcoder and backbone do not fit.
    """

    def __init__(self, clip: FrozenCLIP, clt: CrossLayerTranscoder, head: Tensor, images: Iterable[Tensor]) -> None:
        self.clip, self.clt, self.head = clip, clt, head.to(clip.device)
        self._starts = [observe(clip, batch.to(clip.device)).streams[0] for batch in images if len(batch)]
        self._kept: tuple[int, dict[int, Tensor]] = (0, {})
        self._before: dict[tuple[str, int], Tensor] = {}

    def __len__(self) -> int:
        return sum(map(len, self._starts))

    @torch.no_grad()
    def steer(self, edits: Sequence[Edit], tokens: str = "all", base: str = "original") -> Iterator[Part]:
        """Class probabilities with and without edits, part by part; the numbers of `steering.steer`.

        Args:
            edits: what is changed; none gives the base model.
            tokens: at which positions: all, cls, patch.
            base: `original` or `replaced`, see `steering.steered`.

        Raises:
            UserError: as `steering.steered`; no edits are allowed.
        """
        if edits:
            check_edits(self.clip, self.clt, edits, tokens, base)
        elif base not in BASES:
            raise UserError(f"base must be original or replaced, got {base!r}")
        first = min((edit.layer for edit in edits), default=0) if base == "original" else 0
        row = 0
        for number, start in enumerate(self._starts):
            before = self._base(number, base)
            after = before
            if edits:
                stream = self._entering(number, first)
                with steered(self.clip, self.clt, edits, tokens, base):
                    after = self._probabilities(finish(self.clip, stream, first))
            yield Part(range(row, row + len(start)), before, after)
            row += len(start)

    def _probabilities(self, embeddings: Tensor) -> Tensor:
        return self.clip.logits(embeddings, self.head).double().softmax(1).cpu()

    def _base(self, number: int, base: str) -> Tensor:
        key = base, number
        if key not in self._before:
            if base == "original":
                embeddings = finish(self.clip, self._starts[number], 0)
            else:
                with replaced(self.clip, self.clt):
                    embeddings = finish(self.clip, self._starts[number], 0)
            self._before[key] = self._probabilities(embeddings)
        return self._before[key]

    def _entering(self, number: int, first: int) -> Tensor:
        if first == 0:
            return self._starts[number]
        layer, streams = self._kept
        if layer != first:
            self._kept = first, (streams := {})
        if number not in streams:
            streams[number] = advance(self.clip, self._starts[number], 0, first)
        return streams[number]
