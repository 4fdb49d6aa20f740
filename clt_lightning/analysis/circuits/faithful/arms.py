"""What each arm of the curves keeps of an image: the rules of a model of the image, and the controls that need none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.faithful.baseline import Baseline
from clt_lightning.analysis.circuits.faithful.curves import Masks
from clt_lightning.analysis.circuits.faithful.dictionary import Dimensions, Features, Observed, observe_units
from clt_lightning.analysis.circuits.faithful.masked import masked_embeddings
from clt_lightning.analysis.circuits.faithful.selection import FRACTIONS, by_score, counts_of, random_scores
from clt_lightning.analysis.target import Target
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder

Errors = Literal["node", "kept", "masked"]
ERRORS = ("node", "kept", "masked")
#: Arms that every transcoder has, in words
CONTROLS = {
    "neurons": "the site's own dimensions, by their gradients",
    "activation": "what writes most, whatever the target",
    "random": "random among those that differ from the baseline",
}
Model = TypeVar("Model")


class UnitArms(ABC, Generic[Model]):
    """`arms(image, label)` for `curves`: an image's circuits by every rule, all masked alike.

    Args:
        clip: the backbone.
        clt: the transcoder.
        baseline: of its features.
        head: `(embed_dim, classes)`.
        classnames: the classes' names.
        dimensions: the baseline of the site's own dimensions, for `neurons`; None leaves that arm out.
        names: which arms; None: all.
        errors: `node`: a layer's error is one of its nodes, ranked like a feature (the paper's way); `kept`: it always
            stays; `masked`: it never does.
        fractions: of a layer's nodes.
        seed: of `random`.

    Raises:
        UserError: an unknown arm, or a baseline of another size.
    """

    #: The rules of the kind of model, in words; `CONTROLS` come after them
    RULES: ClassVar[dict[str, str]]

    def __init__(
        self,
        clip: Any,
        clt: CrossLayerTranscoder,
        baseline: Baseline,
        head: Tensor,
        classnames: Sequence[str],
        *,
        dimensions: Baseline | None = None,
        names: Sequence[str] | None = None,
        errors: Errors = "node",
        fractions: Sequence[float] = FRACTIONS,
        seed: int = 0,
    ) -> None:
        known = self.words()
        wanted = list(known) if names is None else list(names)
        unknown = sorted(set(wanted) - set(known))
        if unknown or not wanted:
            raise UserError(f"unknown arms {unknown}: there are {', '.join(known)}")
        if errors not in ERRORS:
            raise UserError(f"errors must be one of {', '.join(ERRORS)}, got {errors!r}")
        self.names = [name for name in wanted if name != "neurons" or dimensions is not None]
        self.clip, self.clt, self.baseline, self.head, self.classnames = clip, clt, baseline, head, classnames
        self.dimensions, self.errors, self.fractions = dimensions, errors, fractions
        self.features = Features(clip, clt)
        baseline.check(clip, self.features)
        self.own = Dimensions(clip, self.features.write, self.features.blocks)
        if dimensions is not None:
            dimensions.check(clip, self.own)
        self.n_nodes = clt.n_features + (errors == "node")
        self.counts = counts_of(fractions, self.n_nodes)
        self._generator = torch.Generator().manual_seed(seed)

    @classmethod
    def words(cls) -> dict[str, str]:
        """All arms in words."""
        return cls.RULES | CONTROLS

    @abstractmethod
    def model_of(self, image: Tensor, target: Target) -> Model:
        """What the rules look at."""

    @abstractmethod
    def chosen(self, name: str, model: Model) -> Tensor:
        """`(fractions, layers, n_nodes)` bool: what one of `RULES` keeps; `nodes` cuts scores to what is ranked."""

    @abstractmethod
    def gradients(self, model: Model) -> Tensor:
        """`(layers, positions, d)`: the target's gradient by what is rebuilt."""

    def edges_kept(self, model: Model, keep: Tensor) -> Tensor | None:
        """`(fractions,)`: edges whose both ends are kept; None where there are none."""
        return None

    def __call__(self, image: Tensor, label: int) -> Mapping[str, Masks]:
        """The masks of one image `(3, size, size)`, for its class."""
        target = Target.centred(self.head, self.classnames, label, self.clip.logit_scale)
        model = self.model_of(image, target)
        images = image[None].to(self.clip.device)
        seen = observe_units(self.clip, self.features, images)
        changes = (torch.stack(seen.codes).cpu() - self.baseline.codes).abs()  # (layers, positions, F)
        moved = (torch.stack(seen.errors).cpu() - self.baseline.errors).norm(dim=-1)
        active = torch.cat([changes.any(1), moved.any(1)[:, None]], 1)

        def run(masks: Tensor) -> Tensor:
            return masked_embeddings(self.clip, self.features, seen, self.baseline, self._held(masks))

        found = {}
        for name in self.names:
            if name == "neurons":
                found[name] = self._neurons(images, self.gradients(model))
                continue
            if name == "activation":
                written = self._written(changes, seen)
                keep = by_score(self.nodes(torch.cat([written, moved.sum(1)[:, None]], 1)), self.counts)
            elif name == "random":
                keep = by_score(self.nodes(random_scores(active, self._generator)), self.counts)
            else:
                keep = self.chosen(name, model)
            if self.errors != "node":
                keep = torch.cat([keep, keep.new_full((*keep.shape[:-1], 1), self.errors == "kept")], -1)
            found[name] = Masks(keep, self.n_nodes, run, active, self.edges_kept(model, keep))
        return found

    def nodes(self, scores: Tensor) -> Tensor:
        """Scores `(..., F + 1)` of what is ranked: without the error, where that is no node."""
        return scores if self.errors == "node" else scores[..., :-1]

    def _written(self, changes: Tensor, seen: Observed) -> Tensor:
        """`(layers, F)`: how much each feature writes beyond its baseline, summed over positions."""
        rows = []
        for layer, change in enumerate(changes):
            size = self.features.sizes(layer, seen.x[layer]).cpu()
            rows.append((change * size).sum(0) * self.features.decoder_norms(layer).cpu())
        return torch.stack(rows)

    def _held(self, masks: Tensor) -> Tensor:
        """A deletion's masks are the complement; errors that are no nodes stay as they are."""
        if self.errors != "node":
            masks = masks.clone()
            masks[..., -1] = self.errors == "kept"
        return masks

    def _neurons(self, images: Tensor, gradients: Tensor) -> Masks:
        """The site's dimensions, each by its gradient times its change."""
        usual = self.dimensions
        assert usual is not None
        seen = observe_units(self.clip, self.own, images)
        changes = torch.stack(seen.codes).cpu() - usual.codes
        scores = (gradients.cpu().to(changes) * changes).sum(1)
        keep = by_score(scores, counts_of(self.fractions, scores.shape[1]))
        keep = torch.cat([keep, keep.new_ones(*keep.shape[:-1], 1)], -1)  # nothing is left over: no error
        active = torch.cat([changes.any(1), torch.zeros(len(scores), 1, dtype=torch.bool)], 1)

        def run(masks: Tensor) -> Tensor:
            return masked_embeddings(self.clip, self.own, seen, usual, masks)

        return Masks(keep, scores.shape[1], run, active)
