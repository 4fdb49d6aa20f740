"""Cross-layer contributions: how much of each target layer's reconstruction comes from each source layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.core.errors import UserError
from clt_lightning.core.tokens import TOKEN_SETS, TokenLayout
from clt_lightning.metrics.base import ExactMetric
from clt_lightning.transcoder import Codes, CrossLayerTranscoder

#: The token sets that divide an image's tokens among them
KINDS = TOKEN_SETS[:-1]
_BLOCK = 1 << 22  # float64 elements of the terms that are held at once


@dataclass(frozen=True)
class ContributionScores:
    """Contribution scores of one token set; axes `[source, target]`, 0 for sources after the target.

    Attributes:
        tokens: number of tokens.
        uncentred: `(L, L)` float64, `C[i -> j] = E <c_ij, yhat_j> / ||yhat_j||^2`, signed; columns sum to 1.
        centred: `(L, L)` float64, `E <c - Ec, yhat - E yhat> / E ||yhat - E yhat||^2`, signed; columns sum to 1.
        by_class: `(C, L, L)` the uncentred scores of the images of each class, NaN without; None without labels.
        means: `(L, L, d_model)` mean terms `E c_ij`.
        rest_means: `(2, L, d_model)` the same of the linear skip and of the decoder bias.
        whole_uncentred: `(L + 2, L)` the scores with the whole reconstruction in the place of `yhat`: rows of the
            sources, of the linear skip and of the decoder bias; columns sum to 1.
        whole_centred: the same, centred; the bias never varies, so its row is 0.
        whole_by_class: `(C, L + 2, L)` as `by_class`, of `whole_uncentred`.
    """

    tokens: int
    uncentred: Float[Tensor, "layers targets"]
    centred: Float[Tensor, "layers targets"]
    by_class: Float[Tensor, "classes layers layers"] | None
    means: Float[Tensor, "layers layers d"]
    rest_means: Float[Tensor, "2 layers d"]
    whole_uncentred: Float[Tensor, "parts layers"]
    whole_centred: Float[Tensor, "parts layers"]
    whole_by_class: Float[Tensor, "classes parts layers"] | None

    @property
    def features_share(self) -> Float[Tensor, " layers"]:
        """`(L,)` the part of the centred reconstruction's variance that features carry; the rest is the skip's."""
        return self.whole_centred[:-2].sum(0)

    def std_over_classes(self) -> Float[Tensor, "layers targets"] | None:
        """`(L, L)` standard deviation of the scores over the classes that occur; None without labels."""
        return _std(self.by_class)

    def whole_std_over_classes(self) -> Float[Tensor, "parts layers"] | None:
        """`(L + 2, L)` the same of the scores of the whole reconstruction."""
        return _std(self.whole_by_class)


def _std(by_class: Tensor | None) -> Tensor | None:
    if by_class is None:
        return None
    occurs = ~by_class.isnan().all(dim=(1, 2))
    return by_class[occurs].std(0, correction=0) if bool(occurs.any()) else None


class Contributions(ExactMetric):
    """Streams contribution scores, exactly and in one pass, target by target (Chatzoudis et al. 2026).

    Terms are `c_ij = W_dec[i -> j] z_i` and `yhat_j = sum_i c_ij`: no bias and no skip path, so that the columns sum to
    1. The `whole_` scores have two more terms, the skip path's and the bias, and `yhat_j` is the reconstruction itself.
    The uncentred score is a mean of ratios over tokens and counts a direction that never changes as a contribution;
    the centred one is a ratio of means and leaves it out. Tokens whose `yhat_j` is exactly 0 have no score and do not
    count in the uncentred one.

    Args:
        clt: the transcoder; kept out of the state.
        n_classes: 0 without labels.
    """

    ratios: Tensor
    counts: Tensor
    cross: Tensor
    sums: Tensor
    whole_ratios: Tensor
    whole_counts: Tensor
    whole_cross: Tensor
    tokens: Tensor
    class_ratios: Tensor
    class_counts: Tensor
    whole_class_ratios: Tensor
    whole_class_counts: Tensor

    def __init__(self, clt: CrossLayerTranscoder, n_classes: int = 0) -> None:
        super().__init__()
        object.__setattr__(self, "_clt", clt)  # not a child: its weights are no state of this metric
        self.n_classes = n_classes
        K, L, d = len(KINDS), clt.n_layers, clt.d_out
        shapes = {
            "ratios": (K, L, L),
            "counts": (K, L),
            "cross": (K, L, L),
            "sums": (K, L + 2, L, d),
            "whole_ratios": (K, L + 2, L),
            "whole_counts": (K, L),
            "whole_cross": (K, L + 2, L),
            "tokens": (K,),
            "class_ratios": (K, n_classes, L, L),
            "class_counts": (K, n_classes, L),
            "whole_class_ratios": (K, n_classes, L + 2, L),
            "whole_class_counts": (K, n_classes, L),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        codes: Codes,
        layout: TokenLayout,
        labels: Int[Tensor, " images"] | None = None,
        x: Float[Tensor, "layers tokens d_in"] | None = None,
    ) -> None:
        """Take in one batch of whole images.

        Args:
            codes: `(layers, images * positions, F)`.
            layout: which positions are what.
            labels: `(images,)`, -1 for none.
            x: `(layers, images * positions, d_model)` what the skip path reads; a transcoder without one needs none.

        Raises:
            UserError: a transcoder with a skip path, and no x.
        """
        clt: CrossLayerTranscoder = self.__dict__["_clt"]
        if clt.skip and x is None:
            raise UserError("this transcoder has a linear skip path: its contributions need the MLP inputs x as well")
        device = self.ratios.device
        n_tokens = codes.n_tokens
        n_positions = layout.n_positions
        own = torch.tensor([KINDS.index(name) for name in layout.kinds], device=device)
        kinds = own[torch.tensor(layout.kind_of_positions(), device=device)].repeat(n_tokens // n_positions)
        owner = None
        if labels is not None and self.n_classes:
            owner = labels.to(device).repeat_interleave(n_positions)
        self.tokens += torch.bincount(kinds, minlength=len(KINDS))
        sources = [codes.slice(i) for i in range(clt.n_layers)]
        for target in range(clt.n_layers):
            terms = clt.layer_terms(sources[: target + 1], target)
            skip = terms.new_zeros(terms.shape[1:]) if x is None else clt.skip_term(x[target], target)
            bias = clt.bias(target).detach().to(device).double()
            step = max(1, _BLOCK // (terms.shape[0] * terms.shape[2]))
            for start in range(0, n_tokens, step):
                part = slice(start, start + step)
                block = terms[:, part].to(device).double()
                classes = None if owner is None else owner[part]
                rest = skip[part].to(device).double(), bias.expand(block.shape[1], -1)
                self._take(target, block, torch.stack(rest), kinds[part], classes)

    def _take(self, target: int, terms: Tensor, rest: Tensor, kinds: Tensor, classes: Tensor | None) -> None:
        everything = torch.cat([terms, rest])
        n, L = target + 1, self.sums.shape[1] - 2
        rows = torch.arange(n, device=terms.device)
        every = torch.cat([rows, rows.new_tensor([L, L + 1])])
        there = kinds.unique().tolist()
        for prefix, part, at in (("", terms, rows), ("whole_", everything, every)):
            dots, ratios, valid = _scores(part, part.sum(0))
            for kind in there:
                chosen = kinds == kind
                weight = chosen.double()
                getattr(self, f"{prefix}ratios")[kind, at, target] += ratios @ weight
                getattr(self, f"{prefix}counts")[kind, target] += (valid & chosen).sum()
                getattr(self, f"{prefix}cross")[kind, at, target] += dots @ weight
                if classes is not None:
                    use = valid & chosen & (classes >= 0)
                    owner = classes[use]
                    by_class = getattr(self, f"{prefix}class_ratios")
                    found = by_class.new_zeros(self.n_classes, len(at)).index_add_(0, owner, ratios[:, use].T)
                    by_class[kind][:, at, target] += found
                    counts = torch.bincount(owner, minlength=self.n_classes)
                    getattr(self, f"{prefix}class_counts")[kind, :, target] += counts
        for kind in there:
            self.sums[kind, every, target] += torch.einsum("snd,n->sd", everything, (kinds == kind).double())

    def compute(self) -> dict[str, Tensor]:
        """The plain sums of all processes; `scores` makes something of them."""
        return {name: getattr(self, name) for name in self._defaults}

    def scores(self) -> dict[str, ContributionScores]:
        """Scores by token set, of all processes, all of which must call this: of the sets that had tokens, and `all`.

        Where there were no tokens at all, columns are NaN; centred ones also where nothing varies.
        """
        # torchmetrics squeezes sums of one element
        sums = {name: value.reshape(getattr(self, name).shape) for name, value in self.compute().items()}
        there = [kind for kind, tokens in enumerate(sums["tokens"].tolist()) if tokens]
        chosen = {KINDS[kind]: [kind] for kind in there} | {"all": there or [0]}
        return {name: self._scores(sums, kinds) for name, kinds in chosen.items()}

    def _scores(self, sums: dict[str, Tensor], kinds: list[int]) -> ContributionScores:
        total = {name: value[kinds].sum(0) for name, value in sums.items()}
        tokens = total["tokens"]
        means = total["sums"] / tokens
        terms = means[:-2]
        covariance = total["cross"] / tokens - torch.einsum("ijd,jd->ij", terms, terms.sum(0))
        whole = total["whole_cross"] / tokens - torch.einsum("ijd,jd->ij", means, means.sum(0))
        by_class = whole_by_class = None
        if self.n_classes:
            by_class = (total["class_ratios"] / total["class_counts"][:, None]).cpu()
            whole_by_class = (total["whole_class_ratios"] / total["whole_class_counts"][:, None]).cpu()
        # the sum over sources of the covariances is E ||yhat - E yhat||^2
        centred = covariance / covariance.sum(0)
        uncentred = total["ratios"] / total["counts"]
        return ContributionScores(
            int(tokens),
            uncentred.cpu(),
            centred.cpu(),
            by_class,
            terms.cpu(),
            means[-2:].cpu(),
            (total["whole_ratios"] / total["whole_counts"]).cpu(),
            (whole / whole.sum(0)).cpu(),
            whole_by_class,
        )


def _scores(terms: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`<c, yhat>` and `<c, yhat> / ||yhat||^2`, `(terms, tokens)` each, and which tokens have a score."""
    dots = torch.einsum("snd,nd->sn", terms, y_hat)
    squares = y_hat.square().sum(-1)
    valid = squares > 0
    return dots, torch.where(valid, dots / squares.where(valid, torch.ones_like(squares)), 0.0), valid
