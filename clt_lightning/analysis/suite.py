"""A suite: a list of analyses that share one forward of every image. Validation and `test` are two such lists."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.analysis.tower import Needs, Observation, observe
from clt_lightning.backbone import Backbone
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.core.files import finite
from clt_lightning.core.tokens import TokenLayout
from clt_lightning.interventions.replacement import tokens_of
from clt_lightning.metrics import metric_device
from clt_lightning.transcoder import Codes, CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention, at_heads


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        clip: the backbone.
        clt: the transcoder, on the same device.
        head: `(embed_dim, classes)` unit columns; None without classes.
        classnames: their names, in the order of the labels; empty without.
        draws: resamples behind intervals; 0 makes none.
        seed: of resamples and random orders.
        attention: sparse attention, or an autoencoder of attention, beside the transcoder; None without.
    """

    clip: FrozenCLIP
    clt: CrossLayerTranscoder
    head: Float[Tensor, "embed_dim classes"] | None = field(default=None, repr=False)
    classnames: Sequence[str] = ()
    draws: int = 0
    seed: int = 0
    attention: AnyAttention | None = None

    @property
    def tokens(self) -> TokenLayout:
        """Which token of an image is what, at the transcoder's sites."""
        return tokens_of(self.clip, self.clt)

    @property
    def device(self) -> torch.device:
        """Where sums in float64 live."""
        return metric_device(self.clip.device)

    def cosines(self, embeddings: Float[Tensor, "images embed_dim"]) -> Float[Tensor, "images classes"]:
        """`(images, classes)` float32: cosine similarities of unit embeddings with the classes'."""
        assert self.head is not None
        with torch.autocast(embeddings.device.type, enabled=False):  # bf16 logits would tie
            return embeddings.float() @ self.head.float().to(embeddings.device)

    def labels(self, data: Mapping[str, Any]) -> Int[Tensor, " images"]:
        """`(images,)` int64 labels of a batch, -1 for none.

        Raises:
            UserError: a label beyond the class names.
        """
        labels, n = data.get("label"), len(data["image"])
        if labels is None or not self.classnames:
            return torch.full((n,), -1, dtype=torch.int64, device=self.clip.device)
        found: Tensor = labels.to(self.clip.device)
        if found.numel() and int(found.max()) >= len(self.classnames):
            raise UserError(
                f"label {int(found.max())} is outside the {len(self.classnames)} class names: check classnames "
                "against the labels in the shards"
            )
        return found


@dataclass(frozen=True)
class Batch:
    """A batch of the split, and what the untouched tower and the transcoder made of it, each run once.

    Attributes:
        data: as the loader gave it: `image`, and where they are there `label`, `key`, `multi_hot`, `captions`.
        keys: one name per image, unique in the split.
        labels: `(images,)` int64, -1 for none.
        seen: the untouched tower: what the transcoder reads and rebuilds, embeddings, and what analyses need.
        codes: the transcoder's codes of `seen.x`, `(layers, tokens, F)`.
        y_hat: its reconstruction of `seen.y`, `(layers, tokens, d_out)`.
        layout: which token is what.
    """

    data: Mapping[str, Any]
    keys: list[str]
    labels: Int[Tensor, " images"]
    seen: Observation
    codes: Codes
    y_hat: Float[Tensor, "layers tokens d_out"]
    layout: TokenLayout

    @property
    def n_images(self) -> int:
        return len(self.keys)


class Analysis:
    """One thing that is measured over a split, in one pass. Write a subclass to measure something of your own.

    A config names it by class path (`evaluate.extra`); its result stands in `results.json` under
    `evaluation.<split>.extra.<name>`. Sums over a split are exact, and equal for any number of processes, if they are
    kept in a `clt_lightning.metrics.ExactMetric`, whose `compute` gathers them.
    """

    name: ClassVar[str] = ""
    """Its part of the results; empty: the class's name."""

    needs: Needs | tuple[str, ...] = ()
    """What is to be kept of every forward beside `x`, `y` and the embeddings: any of `streams` (the residual stream at
    the entry of every block), `before_mlp` (the stream that every MLP's norm reads) and `attention` (what every block's
    attention adds at [CLS]); or `Needs`, to name blocks."""

    def begin(self, subject: Subject) -> None:
        """Prepare for a split; called once, on every process, before the first batch."""

    def update(self, batch: Batch) -> None:
        """Take in one batch; no gradients."""
        raise NotImplementedError

    def result(self) -> Any:
        """What was measured on all processes' images, all of which must call this.

        Plain values for results.json: numbers, texts, lists, tables (NaN becomes null).
        """
        raise NotImplementedError


class Suite:
    """Runs analyses over a split.

    Args:
        subject: what is evaluated.
        analyses: what is measured, in order.
        extra: analyses of the user's, whose results are told apart.

    Attributes:
        needs: what every forward must keep.

    Raises:
        UserError: two analyses of one name, or needs that do not exist.
    """

    def __init__(self, subject: Subject, analyses: Iterable[Analysis], extra: Iterable[Analysis] = ()) -> None:
        self.subject = subject
        self.analyses, self.extra = _by_name(analyses), _by_name(extra)
        self._all = [*self.analyses.values(), *self.extra.values()]
        self._images = 0
        for analysis in self._all:
            analysis.begin(subject)
        heads = subject.attention is not None and at_heads(subject.attention)
        first = Needs(attention_heads=heads)
        self.needs = functools.reduce(Needs.__or__, (needs_of(a, subject.clip) for a in self._all), first)

    @torch.no_grad()
    def take(self, data: Mapping[str, Any]) -> Batch | None:
        """Run a batch and let every analysis take it in; None where it holds no image."""
        if not len(data["image"]):
            return None  # a process that has run out of images
        clip, clt = self.subject.clip, self.subject.clt
        seen = observe(clip, data["image"], clt=clt, needs=self.needs)
        out = clt(seen.x)
        return self.update(data, seen, clt.gather_codes(out.codes), out.y_hat)

    @torch.no_grad()
    def update(
        self, data: Mapping[str, Any], seen: Observation, codes: Codes, y_hat: Float[Tensor, "layers tokens d_out"]
    ) -> Batch:
        """Let every analysis take in a batch that was run elsewhere, with what `needs` names."""
        batch = self.batch(data, seen, codes, y_hat)
        for analysis in self._all:
            analysis.update(batch)
        return batch

    def batch(
        self, data: Mapping[str, Any], seen: Observation, codes: Codes, y_hat: Float[Tensor, "layers tokens d_out"]
    ) -> Batch:
        """A batch as analyses take it."""
        keys = data.get("key")
        if keys is None:
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            keys = [f"{rank:04d}/{self._images + i:08d}" for i in range(len(data["image"]))]
        self._images += len(data["image"])
        return Batch(data, list(keys), self.subject.labels(data), seen, codes, y_hat, self.subject.tokens)

    def results(self) -> dict[str, Any]:
        """What the analyses have measured, by name; every process must call this."""
        return {name: analysis.result() for name, analysis in self.analyses.items()}

    def extra_results(self) -> dict[str, Any]:
        """The same of the user's analyses, as plain values; every process must call this.

        Raises:
            UserError: one of them gives something that JSON does not know.
        """
        return {name: _plain(name, analysis.result()) for name, analysis in self.extra.items()}


def check_analyses(analyses: Iterable[Analysis], clip: Backbone) -> None:
    """Whether analyses can make a suite.

    Raises:
        UserError: two of one name, or needs that do not exist.
    """
    for analysis in _by_name(analyses).values():
        needs_of(analysis, clip)


def _by_name(analyses: Iterable[Analysis]) -> dict[str, Analysis]:
    found: dict[str, Analysis] = {}
    for analysis in analyses:
        name = analysis.name or type(analysis).__name__
        if name in found:
            raise UserError(f"two analyses are called {name!r}: give one of them another `name`")
        found[name] = analysis
    return found


def _plain(name: str, result: Any) -> Any:
    try:
        json.dumps(result)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the result of the analysis {name!r} is not made of numbers, texts, lists and tables with texts as keys "
            f"({error}): let its result() give such values (tensor.tolist(), float(...))"
        ) from error
    return finite(result)


def needs_of(analysis: Analysis, clip: Backbone) -> Needs:
    """What an analysis needs of a forward, block by block.

    Raises:
        UserError: a name that is none.
    """
    named = analysis.needs
    if isinstance(named, Needs):
        return named
    named = (named,) if isinstance(named, str) else named
    everywhere = frozenset(range(clip.n_layers))
    known = {"streams": everywhere, "before_mlp": everywhere, "attention": True}
    unknown = [name for name in named if name not in known]
    if unknown:
        raise UserError(
            f"{type(analysis).__name__}.needs: unknown are {', '.join(map(str, unknown))}; there are {', '.join(known)}"
        )
    return Needs(**{name: known[name] for name in named})  # type: ignore[arg-type]
