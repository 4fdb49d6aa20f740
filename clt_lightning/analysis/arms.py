"""The variants of CLIP that are compared on the same images: cascaded replacement and its controls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clt_lightning.analysis.collector import key_seeds
from clt_lightning.analysis.tower import Needs, Observation, reads_cls_only
from clt_lightning.backbone import Backbone
from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.lanes import Cascaded, Fixed, Lane, run_lanes
from clt_lightning.interventions.replacement import check_fit, replaced, tokens_of
from clt_lightning.interventions.resume import PAST_ATTENTION, starts
from clt_lightning.metrics import TOKEN_SETS, TokenLayout, check_token_sets, present
from clt_lightning.transcoder import Codes, CrossLayerTranscoder
from clt_lightning.transcoder.attention import AnyAttention
from clt_lightning.transcoder.pairs import Pairs

#: Controls that tell the linear skip's part from the features'
OF_SKIP = ("skip_alone", "features_alone")
#: Kinds whose outputs are known before anything is run
FIXED = ("true_x", "mean_ablated", "zero_ablated", "random")
CONTROLS = (*FIXED, *OF_SKIP)
#: Kinds that change the attention of all blocks: replaced by units, alone and beside the transcoder; at its mean
OF_ATTENTION = ("attention", "with_attention", "attention_mean")


@dataclass(frozen=True)
class Arm:
    """One variant of the model.

    Attributes:
        kind: `original`; `replaced` (cascaded: every x is read from the modified stream); `true_x` (the same window,
            fed with the x of the untouched model); `random` (as `true_x`, but every code writes what another feature of
            its layer would, one drawn at random); `mean_ablated`, `zero_ablated` (MLP outputs set to their training
            mean, to 0); of a transcoder with a linear skip also `skip_alone` (cascaded, with what the features add set
            to its training mean) and `features_alone` (with the skip's part set to its mean); of sparse attention
            `attention` (units in the place of all attention layers, the MLPs as they are), `with_attention` (of all
            MLPs as well) and `attention_mean` (every attention's output set to its training mean at each position).
        first: first layer of the window; None for the original.
        last: last layer of the window.
        tokens: at which positions MLP outputs are replaced.
        sampled: whether it is run on a part of the images only (`CascadeOptions.control_share`).
    """

    kind: str
    first: int | None = None
    last: int | None = None
    tokens: str | None = None
    sampled: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        """`original`, or `<kind>/<first>-<last>/<tokens>`."""
        return self.kind if self.first is None else f"{self.kind}/{self.first}-{self.last}/{self.tokens}"


ORIGINAL = Arm("original")


@dataclass
class CascadeOptions:
    """Which windows of MLPs are replaced.

    Args:
        firsts: first layers of the windows that reach to the last layer; null takes the paper's 0, 3, 7, 10 of 12,
            scaled to the model's depth.
        token_sets: at which tokens the windows are replaced: cls, register, patch, all; of all four those that there
            are.
        singles: replace each layer alone as well.
        single_token_sets: the same for single layers.
        controls: kinds of controls beside every window and single layer: true_x, mean_ablated, zero_ablated, random;
            and beside the windows skip_alone and features_alone, which a transcoder without a linear skip leaves out.
        control_token_sets: at which tokens the windows' controls are run on all images.
        control_share: the share of the images (by key) on which the other controls are run: those of single layers, and
            of windows at other tokens. Only their zero-shot classification is measured.
    """

    firsts: list[int] | None = None
    token_sets: list[str] = field(default_factory=lambda: list(TOKEN_SETS))
    singles: bool = True
    single_token_sets: list[str] = field(default_factory=lambda: ["all"])
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))
    control_token_sets: list[str] = field(default_factory=lambda: ["all"])
    control_share: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self, "cascade")
        for name in ("token_sets", "single_token_sets", "control_token_sets"):
            check_token_sets(getattr(self, name), option=f"cascade.{name}")
        unknown = sorted(set(self.controls) - set(CONTROLS))
        if unknown:
            raise UserError(
                f"cascade.controls={self.controls}: unknown are {', '.join(unknown)}; there are {', '.join(CONTROLS)}"
            )
        if not 0 <= self.control_share <= 1:
            raise UserError(f"cascade.control_share must be between 0 and 1, got {self.control_share}")


def default_firsts(n_layers: int) -> list[int]:
    """The paper's first layers 0, 3, 7, 10 of 12, scaled to a model of `n_layers`."""
    return sorted({round(first * n_layers / 12) for first in (0, 3, 7, 10)} & set(range(n_layers)))


def plan_arms(
    options: CascadeOptions,
    n_layers: int,
    skip: bool = False,
    layout: TokenLayout | None = None,
    attention: int | None = None,
) -> list[Arm]:
    """All arms of an evaluation, the original first.

    Args:
        options: what was asked for.
        n_layers: of the model.
        skip: whether the transcoder has a linear skip, whose part is measured alone then.
        layout: the tokens of the model; None: [CLS] and patches.
        attention: blocks of the backbone, where there is sparse attention for them; None: there is none.

    Raises:
        UserError: a first layer, or a token set, that the model has not.
    """
    layout = TokenLayout(1) if layout is None else layout
    at, at_singles, at_controls = (
        present(getattr(options, name), layout, f"cascade.{name}")
        for name in ("token_sets", "single_token_sets", "control_token_sets")
    )
    firsts = default_firsts(n_layers) if options.firsts is None else options.firsts
    wrong = [first for first in firsts if not 0 <= first < n_layers]
    if wrong:
        raise UserError(f"cascade.firsts={firsts}: {wrong} do not exist in a model with layers 0..{n_layers - 1}")
    last = n_layers - 1
    arms = [Arm("original"), *attention_arms(attention)]
    arms += [Arm("replaced", first, last, tokens) for first in firsts for tokens in at]
    if options.singles:
        arms += [Arm("replaced", i, i, tokens) for i in range(n_layers) for tokens in at_singles]
    everywhere = [(first, last, tokens) for first in firsts for tokens in at_controls]
    elsewhere = [(first, last, tokens) for first in firsts for tokens in at]
    if options.singles:
        elsewhere += [(i, i, tokens) for i in range(n_layers) for tokens in at_singles]
    for kind in (kind for kind in options.controls if skip or kind not in OF_SKIP):
        arms += [Arm(kind, *place) for place in everywhere]
        if options.control_share > 0 and kind not in OF_SKIP:
            sampled = options.control_share < 1
            arms += [Arm(kind, *place, sampled=sampled) for place in elsewhere if place not in everywhere]
    return list(dict.fromkeys(arms))


def attention_arms(blocks: int | None, kinds: Sequence[str] = OF_ATTENTION) -> list[Arm]:
    """The arms of a backbone of so many blocks with sparse attention; none for None."""
    return [] if blocks is None else [Arm(kind, 0, blocks - 1, "all") for kind in kinds]


def sampled(keys: Sequence[str], share: float) -> Tensor:
    """`(images,)` bool: about this share of the images, the same ones for any order, batch size and process count."""
    return ((key_seeds(keys) >> 40) & 0xFFFFFF).double() / (1 << 24) < share


def mixed_up(codes: Codes, seed: int = 0) -> Codes:
    """The same codes, each at another feature: one permutation of every layer's features, from the seed."""
    layers = []
    for layer in range(codes.n_layers):
        generator = torch.Generator().manual_seed(seed * 1000 + layer)
        order = torch.randperm(codes.n_features, generator=generator).to(codes.device)
        pairs, values = codes.layer(layer)
        layers.append((Pairs(order[pairs.features], pairs.offsets, pairs.n_features, pairs.is_rectangular), values))
    return Codes([pairs for pairs, _ in layers], [values for _, values in layers])


@dataclass
class Known:
    """What the arms begin from: the untouched model on some images, their codes and their reconstruction.

    Attributes:
        seen: the untouched model, with what `ArmRunner.needs` names.
        codes: the codes of its x.
        y_hat: their reconstruction, `(layers, tokens, d_model)`.
        random: the same with the features of every layer mixed up; None until an arm asks for it.
    """

    seen: Observation
    codes: Codes
    y_hat: Tensor
    random: Tensor | None = None

    def select(self, chosen: Tensor) -> Known:
        """Some of the images, `(images,)` bool."""
        tokens = chosen.repeat_interleave(self.y_hat.shape[1] // len(chosen))
        random = None if self.random is None else self.random[:, tokens]
        return Known(self.seen.select(chosen), self.codes.select_tokens(tokens), self.y_hat[:, tokens], random)


class ArmRunner:
    """Runs arms on observed images, from the first layer of each window on; arms that are the same model run once.

    Args:
        clip: the backbone.
        clt: the transcoder.
        means: `(layers, kinds, d_model)` mean MLP outputs over the training data, of each of `clip.tokens.kinds`; None
            where they are not known, which the arm `mean_ablated` does not survive.
        feature_means: `(layers, kinds, d_model)` the same of what the features add, for `skip_alone`.
        skip_means: `(layers, kinds, d_model)` the same of the linear skip's part, for `features_alone`.
        attention: sparse attention, for `attention` and `with_attention`.
        attention_means: `(blocks, positions, d_model)` mean outputs of attention layers, for `attention_mean`.
    """

    def __init__(
        self,
        clip: Backbone,
        clt: CrossLayerTranscoder,
        means: Float[Tensor, "layers kinds d"] | None = None,
        feature_means: Float[Tensor, "layers kinds d"] | None = None,
        skip_means: Float[Tensor, "layers kinds d"] | None = None,
        attention: AnyAttention | None = None,
        attention_means: Float[Tensor, "blocks positions d_model"] | None = None,
    ) -> None:
        self.clip, self.clt, self.means = clip, clt, means
        self.blocks, self.tokens = check_fit(clip, clt), tokens_of(clip, clt)
        self.feature_means, self.skip_means = feature_means, skip_means
        self.attention, self.attention_means = attention, attention_means

    def needs(self, arms: Iterable[Arm]) -> Needs:
        """What a forward of the untouched model must keep for these arms."""
        arms = list(arms)
        entry = Needs(streams=frozenset([0])) if any(arm.kind in OF_ATTENTION for arm in arms) else Needs()
        others = [arm for arm in arms if arm.kind not in OF_ATTENTION]
        firsts = [self.blocks[arm.first] for arm in others if arm.first is not None]
        return entry | starts(self.clt, firsts, self.clip.n_layers) if firsts else entry

    def embeddings(
        self, arm: Arm, seen: Observation, codes: Codes, y_hat: Float[Tensor, "layers tokens d"]
    ) -> Float[Tensor, "images embed_dim"]:
        """Unit-norm embeddings `(images, embed_dim)` of an arm.

        Args:
            arm: which variant.
            seen: the untouched model on these images.
            codes: the codes of its x.
            y_hat: their reconstruction, `(layers, tokens, d_model)`.

        Raises:
            UserError: mean ablation without means.
        """
        everyone = torch.ones(seen.n_images, dtype=torch.bool, device=seen.embeddings.device)
        return self.all_embeddings([arm], Known(seen, codes, y_hat), everyone)[0]

    @torch.no_grad()
    def all_embeddings(
        self, arms: Sequence[Arm], known: Known, some: Bool[Tensor, " images"]
    ) -> list[Float[Tensor, "_ embed_dim"]]:
        """The embeddings of every arm, each model run once, many side by side; of sampled arms those of some images.

        Args:
            arms: which variants.
            known: the untouched model on these images.
            some: `(images,)` bool, the images of sampled arms.

        Returns:
            `(images, embed_dim)` or `(some of them, embed_dim)` for each arm.

        Raises:
            UserError: mean ablation without means.
        """
        if any(arm.kind == "random" for arm in arms):
            known.random = self._random_y(known)
        models = [self.model_of(arm) for arm in arms]
        on_all = {model for arm, model in zip(arms, models) if not arm.sampled}
        part = known if bool(some.all()) or on_all.issuperset(models) else known.select(some)
        lanes: dict[Arm, Lane] = {}
        found = {ORIGINAL: known.seen.embeddings}
        for model in dict.fromkeys(models):
            given = known if model in on_all else part
            if model == ORIGINAL or not given.seen.n_images:
                continue
            if model.kind in OF_ATTENTION:
                found[model] = self._change_attention(model.kind, given.seen.streams[0])
            else:
                lanes[model] = self._lane(model, given)
        found |= dict(zip(lanes, run_lanes(list(lanes.values()))))

        def of_some(model: Arm) -> Tensor:
            if model in on_all or model == ORIGINAL:
                return found[model][some]
            return found.get(model, known.seen.embeddings[some])  # no image among them

        return [of_some(model) if arm.sampled else found[model] for arm, model in zip(arms, models)]

    def model_of(self, arm: Arm) -> Arm:
        """The arm that stands for all arms of the same model."""
        if arm.first is None or arm.last is None or arm.tokens is None:
            return ORIGINAL
        if arm.kind in OF_ATTENTION:
            return Arm(arm.kind, arm.first, arm.last, arm.tokens)
        kind, last = arm.kind, arm.last
        # what is written after the last attention is read at [CLS] alone
        unread = arm.tokens not in ("all", "cls") and str(self.clt.sites.write) in PAST_ATTENTION
        if unread and self.blocks[last] == self.clip.n_layers - 1 and reads_cls_only(self.clip):
            if arm.first == last:
                return ORIGINAL
            last -= 1
        if kind == "true_x" and arm.first == last:
            kind = "replaced"  # what the first layer of a window reads is untouched
        return Arm(kind, arm.first, last, arm.tokens)

    def _lane(self, model: Arm, known: Known) -> Lane:
        """A model on the images that are known."""
        first, last, tokens = _place(model)
        place = self.clip, self.clt, self.blocks[first : last + 1], tokens, known.seen
        if model.kind in FIXED:
            outputs = self._outputs(model, known)
            return Fixed(*place, outputs=lambda block: outputs(self.blocks.index(block)))
        y: Tensor = known.y_hat[first]
        parts: dict[str, Any] = {}
        if model.kind in OF_SKIP:
            y, parts = self._part_alone(model.kind, first, tokens, known)
        return Cascaded(*place, codes=known.codes, new=y.unflatten(0, (known.seen.n_images, -1)), parts=parts)

    def _change_attention(self, kind: str, entry: Tensor) -> Tensor:
        """The embeddings with the attention of all blocks changed, from the stream at the entry of the first."""
        if kind == "attention_mean":
            means = self.attention_means
            if means is None:
                raise UserError("attention_mean needs the training data's means: give ArmRunner(attention_means=...)")
            with self.clip.override("attn_out", lambda block, x, compute: means[block].to(x).expand_as(x)):
                return self.clip.run_from(0, entry)
        if self.attention is None:
            raise UserError(f"the arm {kind} needs sparse attention: give ArmRunner(attention=...)")
        with replaced(self.clip, self.clt if kind == "with_attention" else None, attention=self.attention):
            return self.clip.run_from(0, entry)

    def _outputs(self, model: Arm, known: Known) -> Callable[[int], Tensor]:
        """What a model of `FIXED` puts in the place of each layer: `(images, positions, d)`, or broadcast to it."""
        images, kinds = known.seen.n_images, self.tokens.kind_of_positions()
        if model.kind in ("true_x", "random"):
            y = known.y_hat if model.kind == "true_x" else self._random_y(known)
            return lambda layer: y[layer].unflatten(0, (images, -1))
        if model.kind == "zero_ablated":
            return lambda layer: known.y_hat.new_zeros(1)
        means = self.means
        if means is None:
            raise UserError("mean ablation needs the training data's means: give ArmRunner(means=...)")
        return lambda layer: means[layer, kinds]

    def _random_y(self, known: Known) -> Tensor:
        if known.random is None:
            known.random = self.clt.decode(mixed_up(known.codes), known.seen.x)
        return known.random

    def _part_alone(self, kind: str, first: int, tokens: str, known: Known) -> tuple[Tensor, dict[str, Any]]:
        """What the first layer gets, `(tokens, d)`, and the changed part of the later ones."""
        means = self.feature_means if kind == "skip_alone" else self.skip_means
        if means is None:
            raise UserError(f"{kind} needs the training data's means: give ArmRunner(feature_means=, skip_means=)")
        kinds, images = self.tokens.kind_of_positions(), known.seen.n_images
        everywhere = torch.tensor(kinds * images, device=means.device)
        place = torch.tensor(kinds[self.tokens.span(tokens)] * images, device=means.device)
        x, mean = known.seen.x[first], means[first, everywhere]
        if kind == "skip_alone":
            y = mean + self.clt.rest_term(x, first)
            return y, {"edit": lambda layer, terms: means[layer, place].to(terms)[None]}
        y = known.y_hat[first] - self.clt.skip_term(x, first) + mean
        return y, {"skip": lambda layer, x: means[layer, place].to(self.clt.b_dec)}


def _place(arm: Arm) -> tuple[int, int, str]:
    assert arm.first is not None
    assert arm.last is not None
    assert arm.tokens is not None
    return arm.first, arm.last, arm.tokens
