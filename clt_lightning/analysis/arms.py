"""The variants of CLIP that are compared on the same images: cascaded replacement and its controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis.collector import key_seeds
from clt_lightning.analysis.tower import Observation, finish, reads_cls_only
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.arguments import check_fields
from clt_lightning.core.errors import UserError
from clt_lightning.interventions.replacement import check_fit, replaced, tokens_of
from clt_lightning.metrics import TOKEN_SETS, TokenLayout, check_token_sets, present, token_mask
from clt_lightning.transcoder import Codes, CrossLayerTranscoder
from clt_lightning.transcoder.codes import Pairs

#: Controls that tell the linear skip's part from the features'
OF_SKIP = ("skip_alone", "features_alone")
CONTROLS = ("true_x", "mean_ablated", "zero_ablated", "random", *OF_SKIP)


@dataclass(frozen=True)
class Arm:
    """One variant of the model.

    Attributes:
        kind: `original`; `replaced` (cascaded: every x is read from the modified stream); `true_x` (the same window,
            fed with the x of the untouched model); `random` (as `true_x`, but every code writes what another feature of
            its layer would, one drawn at random); `mean_ablated`, `zero_ablated` (MLP outputs set to their training
            mean, to 0); of a transcoder with a linear skip also `skip_alone` (cascaded, with what the features add set
            to its training mean) and `features_alone` (with the skip's part set to its mean).
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
    options: CascadeOptions, n_layers: int, skip: bool = False, layout: TokenLayout | None = None
) -> list[Arm]:
    """All arms of an evaluation, the original first.

    Args:
        options: what was asked for.
        n_layers: of the model.
        skip: whether the transcoder has a linear skip, whose part is measured alone then.
        layout: the tokens of the model; None: [CLS] and patches.

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
    arms = [Arm("original")]
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


class ArmRunner:
    """Runs arms on observed images, from the first layer of each window on.

    Args:
        clip: the backbone.
        clt: the transcoder.
        means: `(layers, kinds, d_model)` mean MLP outputs over the training data, of each of `clip.tokens.kinds`; None
            where they are not known, which the arm `mean_ablated` does not survive.
        feature_means: `(layers, kinds, d_model)` the same of what the features add, for `skip_alone`.
        skip_means: `(layers, kinds, d_model)` the same of the linear skip's part, for `features_alone`.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        clt: CrossLayerTranscoder,
        means: Tensor | None = None,
        feature_means: Tensor | None = None,
        skip_means: Tensor | None = None,
    ) -> None:
        self.clip, self.clt, self.means = clip, clt, means
        self.blocks, self.tokens = check_fit(clip, clt), tokens_of(clip, clt)
        self.feature_means, self.skip_means = feature_means, skip_means
        self._random: tuple[Codes, Tensor] | None = None

    def _random_y(self, seen: Observation, codes: Codes) -> Tensor:
        """The reconstruction with the features of every layer mixed up, `(layers, tokens, d_model)`."""
        if self._random is None or self._random[0] is not codes:
            self._random = codes, self.clt.decode(mixed_up(codes), seen.x)
        return self._random[1]

    @torch.no_grad()
    def embeddings(self, arm: Arm, seen: Observation, codes: Codes, y_hat: Tensor) -> Tensor:
        """Unit-norm embeddings `(images, embed_dim)` of an arm.

        Args:
            arm: which variant.
            seen: the untouched model on these images.
            codes: the codes of its x.
            y_hat: their reconstruction, `(layers, tokens, d_model)`.

        Raises:
            UserError: mean ablation without means.
        """
        if arm.first is None or arm.last is None or arm.tokens is None:
            return seen.embeddings
        first = self.clip.n_layers - 1 if self.clt.sites.once else self.blocks[arm.first]
        if arm.tokens == "patch" and first == self.clip.n_layers - 1 and reads_cls_only(self.clip):
            return seen.embeddings  # what the last block writes at patches reaches nothing
        with self._active(arm, seen, codes, y_hat):
            return finish(self.clip, seen.streams[first], first)

    def _active(self, arm: Arm, seen: Observation, codes: Codes, y_hat: Tensor) -> AbstractContextManager[None]:
        assert arm.first is not None
        assert arm.last is not None
        assert arm.tokens is not None
        window = self.blocks[arm.first : arm.last + 1]
        if arm.kind == "replaced":
            return self._cascade(window, arm.tokens, seen, codes)
        if arm.kind in OF_SKIP:
            return self._part_alone(arm.kind, window, arm.tokens, seen, codes)
        positions = self.tokens.span(arm.tokens)
        if arm.kind == "random":
            y_hat = self._random_y(seen, codes)
        by_image = y_hat.unflatten(1, (seen.n_images, -1))
        means = self.means
        if arm.kind == "mean_ablated" and means is None:
            raise UserError("mean ablation needs the training data's means: give ArmRunner(means=...)")

        kinds = self.tokens.kind_of_positions()

        def branch(block: int, x: Tensor, compute_y: Callable[[], Tensor]) -> Tensor:
            layer = self.blocks.index(block)
            if arm.kind in ("true_x", "random"):
                new = by_image[layer].to(x).view_as(x)
            elif arm.kind == "mean_ablated":
                assert means is not None
                new = means[layer, kinds].to(x).expand_as(x)
            else:
                new = torch.zeros_like(x)
            if arm.tokens == "all":
                result: Tensor = new
                return result
            y = compute_y().clone()
            y[:, positions] = new[:, positions].to(y.dtype)
            return y

        return self.clip.override(str(self.clt.sites.write), branch, window)

    def _part_alone(
        self, kind: str, window: Sequence[int], tokens: str, seen: Observation, codes: Codes
    ) -> AbstractContextManager[None]:
        means = self.feature_means if kind == "skip_alone" else self.skip_means
        if means is None:
            raise UserError(f"{kind} needs the training data's means: give ArmRunner(feature_means=, skip_means=)")
        kinds = self.tokens.kind_of_positions()[self.tokens.span(tokens)]
        place = torch.tensor(kinds * seen.n_images, device=means.device)

        def mean_features(layer: int, terms: Tensor) -> Tensor:
            return means[layer, place].to(terms)[None]

        def mean_skip(layer: int, x: Tensor) -> Tensor:
            return means[layer, place].to(self.clt.b_dec)

        if kind == "skip_alone":
            return self._cascade(window, tokens, seen, codes, edit=mean_features)
        return self._cascade(window, tokens, seen, codes, skip=mean_skip)

    @contextmanager
    def _cascade(
        self, window: Sequence[int], tokens: str, seen: Observation, codes: Codes, **parts: Any
    ) -> Iterator[None]:
        # what layers before the window write is known from the untouched forward: they are not run again
        earlier = codes
        if tokens != "all":
            earlier = codes.select_tokens(token_mask(tokens, self.tokens, codes.n_tokens, codes.device))
        with replaced(self.clip, self.clt, window, tokens, **parts) as trace:
            first = self.blocks.index(window[0])
            trace.codes.update({layer: earlier.slice(layer) for layer in range(first)})
            yield
