"""What each arm of the curves keeps of an image of the residual replacement model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from clt_lightning.analysis.circuits.faithful.baseline import Baseline
from clt_lightning.analysis.circuits.faithful.curves import Masks
from clt_lightning.analysis.circuits.faithful.dictionary import Dimensions, Features, observe_units
from clt_lightning.analysis.circuits.faithful.masked import masked_embeddings
from clt_lightning.analysis.circuits.faithful.selection import (
    FRACTIONS,
    by_edges,
    by_score,
    counts_of,
    random_scores,
)
from clt_lightning.analysis.circuits.residual.relevance import LayerEdges, Relevance, relevance, residual_model
from clt_lightning.analysis.target import Target
from clt_lightning.core.errors import UserError
from clt_lightning.transcoder import CrossLayerTranscoder

#: Arms in words
ARMS = {
    "edges": "by edges, the paper's rule",
    "nodes": "by nodes: the target's gradient, held",
    "edges_plain": "by edges, plain gradients",
    "nodes_plain": "by nodes, plain gradients",
    "neurons": "the stream's own dimensions, by node",
    "activation": "the largest activations",
    "random": "random among active",
}
Errors = Literal["node", "kept", "masked"]
ERRORS = ("node", "kept", "masked")


class ResidualArms:
    """`arms(image, label)` for `curves`: see `ARMS`.

    Args:
        clip: the backbone.
        sae: autoencoders at `resid_post`.
        baseline: of their features.
        head: `(embed_dim, classes)`.
        classnames: the classes' names.
        dimensions: the baseline of the stream's own dimensions, for `neurons`; None leaves that arm out.
        names: which arms; None: all.
        errors: `node`: a layer's error is one of its nodes, ranked like a feature (the paper's way); `kept`: it always
            stays; `masked`: it never does.
        fractions: of a layer's nodes.
        seed: of `random`.

    Raises:
        UserError: an unknown arm, or a baseline of another size.
    """

    def __init__(
        self,
        clip: Any,
        sae: CrossLayerTranscoder,
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
        wanted = list(ARMS) if names is None else list(names)
        unknown = sorted(set(wanted) - set(ARMS))
        if unknown or not wanted:
            raise UserError(f"unknown arms {unknown}: there are {', '.join(ARMS)}")
        if errors not in ERRORS:
            raise UserError(f"errors must be one of {', '.join(ERRORS)}, got {errors!r}")
        self.names = [name for name in wanted if name != "neurons" or dimensions is not None]
        self.clip, self.sae, self.baseline, self.head, self.classnames = clip, sae, baseline, head, classnames
        self.dimensions, self.errors, self.fractions = dimensions, errors, fractions
        self.features = Features(clip, sae)
        baseline.check(clip, self.features)
        self.own = Dimensions(clip, self.features.write, self.features.blocks)
        if dimensions is not None:
            dimensions.check(clip, self.own)
        self.n_nodes = sae.n_features + (errors == "node")
        self.counts = counts_of(fractions, self.n_nodes)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, image: Tensor, label: int) -> Mapping[str, Masks]:
        """The masks of one image `(3, size, size)`, for its class."""
        target = Target.centred(self.head, self.classnames, label, self.clip.logit_scale)
        model = residual_model(self.clip, self.sae, image)
        seen = observe_units(self.clip, self.features, image[None].to(self.clip.device))
        found = {}
        of: dict[str, Relevance] = {}

        def relevant(errors: Literal["leaf", "through"], rules: Literal["libragrad", "gradient"]) -> Relevance:
            name = f"{errors} {rules}"
            if name not in of:
                of[name] = relevance(
                    model, target, self.baseline, errors=errors, rules=rules, edges=errors == "leaf"
                )
            return of[name]

        codes = torch.stack([c.detach() for c in model.codes]).cpu()  # (layers, positions, F)
        changes = (codes - self.baseline.codes).abs()
        moved = (model.errors.cpu() - self.baseline.errors).norm(dim=-1)
        active = torch.cat([changes.any(1), moved.any(1)[:, None]], 1)
        leaf = relevant("leaf", "libragrad")
        for name in self.names:
            if name == "neurons":
                found[name] = self._neurons(image, target)
                continue
            rules: Literal["libragrad", "gradient"] = "gradient" if name.endswith("_plain") else "libragrad"
            if name.startswith("edges"):
                mine = relevant("leaf", rules)
                edges = [(e.readers, self._nodes(e.weight)) for e in mine.edges]
                keep = by_edges(self._nodes(mine.nodes.cpu()), edges, self.counts)
            elif name.startswith("nodes"):
                keep = by_score(self._nodes(relevant("through", rules).nodes.cpu()), self.counts)
            elif name == "activation":
                size = torch.stack([self.features.decoder_norms(i).cpu() for i in range(len(codes))])
                written = (changes * model.sizes.cpu()).sum(1) * size
                keep = by_score(self._nodes(torch.cat([written, moved.sum(1)[:, None]], 1)), self.counts)
            else:
                keep = by_score(self._nodes(random_scores(active, self.generator)), self.counts)
            keep = self._with_errors(keep)

            def run(masks: Tensor) -> Tensor:
                return masked_embeddings(self.clip, self.features, seen, self.baseline, self._held(masks))

            found[name] = Masks(keep, self.n_nodes, run, active, edges_kept(leaf.edges, keep))
        return found

    def _nodes(self, scores: Tensor) -> Tensor:
        """Scores of what is ranked: without the error, where that is not a node."""
        return scores if self.errors == "node" else scores[..., :-1]

    def _with_errors(self, keep: Tensor) -> Tensor:
        if self.errors == "node":
            return keep
        return torch.cat([keep, keep.new_full((*keep.shape[:-1], 1), self.errors == "kept")], -1)

    def _held(self, masks: Tensor) -> Tensor:
        """A deletion's masks are the complement; errors that are no nodes stay as they are."""
        if self.errors != "node":
            masks = masks.clone()
            masks[..., -1] = self.errors == "kept"
        return masks

    def _neurons(self, image: Tensor, target: Target) -> Masks:
        """The stream's dimensions, each by its gradient times its change."""
        assert self.dimensions is not None
        seen = observe_units(self.clip, self.own, image[None].to(self.clip.device))
        model = residual_model(self.clip, self.sae, image)
        gradients = model.gradients(target)
        streams = model.streams.cpu()
        changes = streams - self.dimensions.codes
        scores = (gradients.cpu() * changes).sum(1)
        none = scores.new_zeros(len(scores), 1)
        counts = counts_of(self.fractions, scores.shape[1])
        keep = by_score(scores, counts)
        keep = torch.cat([keep, keep.new_ones(*keep.shape[:-1], 1)], -1)

        def run(masks: Tensor) -> Tensor:
            return masked_embeddings(self.clip, self.own, seen, self.dimensions, masks)  # type: ignore[arg-type]

        return Masks(keep, scores.shape[1], run, torch.cat([changes.any(1), none.bool()], 1))


def edges_kept(edges: Sequence[LayerEdges], keep: Tensor) -> Tensor:
    """`(fractions,)`: edges whose both ends are kept."""
    total = torch.zeros(len(keep))
    for layer, part in enumerate(edges):
        real = (part.weight != 0).float()
        readers = keep[:, layer + 1, part.readers].float()
        total += torch.einsum("cr,rn,cn->c", readers, real, keep[:, layer].float())
    return total
