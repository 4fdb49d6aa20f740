"""Steering: what the model makes of an image when chosen features are set, scaled or moved."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.analysis import notebook
from clt_lightning.analysis.circuits.nodeset import NodeSet
from clt_lightning.analysis.intervals import Interval, mean_intervals
from clt_lightning.backbone.clip import FrozenCLIP
from clt_lightning.core.errors import UserError
from clt_lightning.core.say import doubt
from clt_lightning.interventions.replacement import check_fit, replaced
from clt_lightning.transcoder import Codes, CrossLayerTranscoder
from clt_lightning.transcoder.columns import columns

Kind = Literal["set", "scale", "add"]
See = Callable[[dict[str, Any], Float[Tensor, "images classes"], Float[Tensor, "images classes"]], None]
"""`see(batch, before, after)`: a batch, and its probabilities without and with the edits."""
BASES = ("original", "replaced")
SKIP_DOUBT = (
    "this transcoder has a linear skip, which steering cannot reach: an edit changes what the features write, and the "
    "skip writes the rest of each MLP's output from the whole input (test says how much: 'centred reconstruction')"
)


@dataclass(frozen=True)
class Edit:
    """One change of a feature's code z.

    Attributes:
        layer: the feature's layer.
        feature: its number in the layer.
        kind: `set` makes z the value, `scale` multiplies by it, `add` adds it.
        value: of finite size, in the units of the code.
        position: the token at which it acts, counted from [CLS] (0); None: wherever the others act.
    """

    layer: int
    feature: int
    kind: Kind
    value: float
    position: int | None = None

    @classmethod
    def parse(cls, kind: Kind, text: str) -> Edit:
        """From `LAYER/FEATURE=VALUE`, or `LAYER/FEATURE@POSITION=VALUE`.

        Raises:
            UserError: other text.
        """
        number = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
        found = re.fullmatch(rf"(\d+)/(\d+)(?:@(\d+))?={number}", text.strip())
        if found is None:
            raise UserError(
                f"--{kind} {text}: expected LAYER/FEATURE=VALUE, such as 2/117=4.0, or LAYER/FEATURE@POSITION=VALUE, "
                "the value a finite number"
            )
        position = None if found[3] is None else int(found[3])
        return cls(int(found[1]), int(found[2]), kind, float(found[4]), position)

    @classmethod
    def of_nodes(cls, nodes: NodeSet) -> list[Edit]:
        """The edits that a set of nodes asks for.

        Raises:
            UserError: a node that is no feature.
        """
        others = [edit for edit in nodes if edit.kind != "feature"]
        if others:
            raise UserError(f"steering moves features; {others[0]} is none (cl.intervene changes errors and biases)")
        return [cls(e.layer, int(e.feature or 0), e.action, e.value, e.position) for e in nodes]

    def moved(self, code: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The code after the edit, elementwise."""
        if self.kind == "set":
            return torch.full_like(code, self.value)
        return code * self.value if self.kind == "scale" else code + self.value

    def __str__(self) -> str:
        sign = {"set": "= ", "scale": "x ", "add": "+ "}[self.kind]
        place = "" if self.position is None else f" @{self.position}"
        return f"{self.layer}/{self.feature}{place} {sign}{self.value:g}"


@contextmanager
def steered(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    edits: Sequence[Edit],
    tokens: str = "all",
    base: str = "original",
) -> Iterator[None]:
    """While active, the edited features write what their new codes say, into their own and all later layers.

    What is added to layer j is `sum over edits of (z' - z) W_dec[layer -> j]`: nothing else of the reconstruction
    plays a part (a transcoder with a linear skip is warned of: no edit reaches the skip). Codes are read from the
    running stream, so that an edit sees what earlier ones have done.

    Args:
        clip: the backbone.
        clt: the transcoder, on the same device.
        edits: applied in order; two of one feature follow one another.
        tokens: `all`, `cls`, `register` or `patch`: at which positions.
        base: `original` keeps CLIP's own MLPs and adds the change to their outputs; `replaced` has the transcoder in
            the place of all MLPs.

    Raises:
        UserError: no edits, a layer or feature that does not exist, a value that is not finite, unknown words, a
            backbone of other layers or width, or topology `sae`, whose codes are read from what they would change.
    """
    check_edits(clip, clt, edits, tokens, base)
    if clt.skip:
        doubt(SKIP_DOUBT)
    by_layer: dict[int, list[Edit]] = {}
    for edit in edits:
        by_layer.setdefault(edit.layer, []).append(edit)
    positions, blocks = clip.tokens.span(tokens), check_fit(clip, clt)
    #: layer -> the edited features and `(images, positions, features)` change of their codes
    changes: dict[int, tuple[list[int], Tensor]] = {}

    def read(layer: int, codes: Codes, n_images: int) -> None:
        features = sorted({edit.feature for edit in by_layer[layer]})
        z = columns(codes, features).unflatten(0, (n_images, -1))
        moved = z.clone()
        for edit in by_layer[layer]:
            column = features.index(edit.feature)
            at = positions if edit.position is None else slice(edit.position, edit.position + 1)
            moved[:, at, column] = edit.moved(moved[:, at, column])
        changes[layer] = features, moved - z

    def written(layer: int) -> Iterator[tuple[int, Tensor]]:
        """Sources that change layer `layer`, with `(images, positions, d_model)` of change."""
        for source, (features, change) in changes.items():
            if source <= layer and clt.writes(source, layer):
                yield source, change @ (clt.W_dec[source][features, layer - source] * clt.y_scale[layer])

    if base == "original":

        def see(block: int, x: Tensor) -> None:
            layer = blocks.index(block)
            read(layer, clt.encode_layer(x.flatten(0, 1), layer), len(x))

        def branch(block: int, x: Tensor, compute_y: Callable[[], Tensor]) -> Tensor:
            layer, y = blocks.index(block), compute_y()
            for _, part in written(layer):
                y = y + part.to(y.dtype)
            return y

        site_in, site_out = str(clt.sites.read), str(clt.sites.write)
        watched = [blocks[layer] for layer in by_layer]
        with clip.watch(see, watched, site_in), clip.override(site_out, branch, blocks):
            yield
    else:

        def change_terms(layer: int, terms: Tensor) -> Tensor:
            if layer in by_layer:
                read(layer, trace.codes[layer], terms.shape[1] // clip.n_positions)
            for source, part in written(layer):
                terms[source] += part.flatten(0, 1).to(terms.dtype)
            return terms

        with replaced(clip, clt, edit=change_terms) as trace:
            yield


def check_edits(clip: FrozenCLIP, clt: CrossLayerTranscoder, edits: Sequence[Edit], tokens: str, base: str) -> None:
    """Whether `steered` can do this; raises what it raises."""
    check_fit(clip, clt)
    if clt.topology == "sae":
        raise UserError("a transcoder of topology 'sae' cannot steer: its codes are read from the output they change")
    if not edits:
        raise UserError("steering needs at least one edit")
    for edit in edits:
        if not (0 <= edit.layer < clt.n_layers and 0 <= edit.feature < clt.n_features):
            raise UserError(
                f"feature {edit.layer}/{edit.feature} does not exist: layers 0..{clt.n_layers - 1}, "
                f"features 0..{clt.n_features - 1}"
            )
        if edit.kind not in ("set", "scale", "add"):
            raise UserError(f"an edit is of kind set, scale or add, got {edit.kind!r}")
        if not abs(edit.value) < float("inf"):
            raise UserError(f"edit {edit}: the value must be finite")
    span = clip.tokens.span(tokens)
    for edit in edits:
        if edit.position is not None and not span.start <= edit.position < span.stop:
            raise UserError(
                f"edit {edit}: position {edit.position} is not among the tokens {tokens!r}, {span.start} to "
                f"{span.stop - 1}"
            )
    if base not in BASES:
        raise UserError(f"base must be original or replaced, got {base!r}")


@dataclass(frozen=True)
class SteeringResult:
    """Class probabilities with and without the edits.

    Attributes:
        keys: one per image.
        labels: `(images,)` int64, -1 for none.
        classnames: names of the classes.
        before: `(images, classes)` probabilities of the base model, fp64.
        after: the same with the edits.
    """

    keys: list[str]
    labels: Int[Tensor, " images"]
    classnames: list[str]
    before: Float[Tensor, "images classes"]
    after: Float[Tensor, "images classes"]

    @property
    def mean_change(self) -> Float[Tensor, " classes"]:
        """`(classes,)`: mean change of each class's probability over the images."""
        return (self.after - self.before).mean(0)

    @property
    def changed(self) -> int:
        """Number of images whose most probable class is another one."""
        return int((self.before.argmax(1) != self.after.argmax(1)).sum())

    def top1(self) -> tuple[float, float] | None:
        """Top-1 accuracy on labelled images before and after; None without labels."""
        known = self.labels >= 0
        if not bool(known.any()):
            return None
        hits = [(p.argmax(1) == self.labels)[known].double().mean().item() for p in (self.before, self.after)]
        return hits[0], hits[1]

    def change_intervals(self, draws: int = 2000, seed: int = 0) -> list[Interval]:
        """Of each class the mean change of its probability, with its 95 % interval over images (bootstrap)."""
        return mean_intervals((self.after - self.before).numpy(), draws, seed)

    def top1_difference(self, draws: int = 2000, seed: int = 0) -> Interval | None:
        """Accuracy after less that before on the same labelled images, with its interval; None without labels."""
        known = self.labels >= 0
        if not bool(known.any()):
            return None
        right = [(p.argmax(1) == self.labels)[known].double() for p in (self.after, self.before)]
        return mean_intervals((right[0] - right[1])[:, None].numpy(), draws, seed)[0]

    def _repr_html_(self) -> str:
        change, before = self.mean_change, self.before.mean(0)
        rows = [
            [self.classnames[c], f"{before[c]:.2%}", f"{before[c] + change[c]:.2%}", f"{100 * change[c]:+.2f}"]
            for c in change.abs().argsort(descending=True)[:10].tolist()
        ]
        title = f"{len(self.keys)} images, {self.changed} named otherwise"
        return notebook.table(["class", "before", "after", "points"], rows, title)

    def summary(self, edits: Sequence[Edit] = ()) -> dict[str, Any]:
        """`to_json` without the single images."""
        top1, difference, intervals = self.top1(), self.top1_difference(), self.change_intervals()
        plain = ("layer", "feature", "kind", "value")
        return {
            "edits": [
                {name: getattr(e, name) for name in plain} | ({} if e.position is None else {"position": e.position})
                for e in edits
            ],
            "images": len(self.keys),
            "changed": self.changed,
            "top1": None
            if top1 is None or difference is None
            else {"before": top1[0], "after": top1[1], "difference": difference.to_json()},
            "classnames": self.classnames,
            "mean_before": self.before.mean(0).tolist(),
            "mean_change": self.mean_change.tolist(),
            "mean_change_interval": [[interval.low, interval.high] for interval in intervals],
        }

    def to_json(self, edits: Sequence[Edit] = ()) -> dict[str, Any]:
        """As in docs/results-schema.md."""
        return self.summary(edits) | {
            "per_image": [
                {
                    "key": key,
                    "label": int(self.labels[n]),
                    "before": self.before[n].tolist(),
                    "after": self.after[n].tolist(),
                }
                for n, key in enumerate(self.keys)
            ]
        }


@torch.no_grad()
def steer(
    clip: FrozenCLIP,
    clt: CrossLayerTranscoder,
    batches: Iterable[dict[str, Any]],
    edits: Sequence[Edit],
    head: Float[Tensor, "embed_dim classes"],
    classnames: Sequence[str],
    tokens: str = "all",
    base: str = "original",
    see: See | None = None,
) -> SteeringResult:
    """Class probabilities of images with and without edits of features.

    Args:
        clip: the backbone.
        clt: the transcoder.
        batches: `{"image": (B, 3, H, W), "label": (B,), "key": [str]}`; without `label` nothing is said of accuracy.
        edits: what is changed.
        head: `(embed_dim, classes)` from `clip.zero_shot_head`.
        classnames: names of the head's columns.
        tokens: at which positions: all, cls, register, patch.
        base: `original` or `replaced`, see `steered`.
        see: is given every batch, with its probabilities without and with the edits.

    Raises:
        UserError: no images, a head of another number of classes, and what `steered` raises.
    """
    check_edits(clip, clt, edits, tokens, base)
    if head.shape[1] != len(classnames):
        raise UserError(f"the head has {head.shape[1]} columns for {len(classnames)} class names")
    head = head.to(clip.device)
    keys: list[str] = []
    labels, before, after = [], [], []

    def probabilities(images: Tensor) -> Tensor:
        return clip.logits(clip.encode_image(images), head).double().softmax(1).cpu()

    for batch in batches:
        images = batch["image"].to(clip.device)
        if base == "original":
            before.append(probabilities(images))
        else:
            with replaced(clip, clt):
                before.append(probabilities(images))
        with steered(clip, clt, edits, tokens, base):
            after.append(probabilities(images))
        keys += list(batch["key"])
        label = batch.get("label")  # data need not have any
        labels.append(torch.full((len(images),), -1) if label is None else torch.as_tensor(label).cpu())
        if see is not None:
            see(batch, before[-1], after[-1])
    if not keys:
        raise UserError("steering needs at least one image, got none")
    return SteeringResult(keys, torch.cat(labels), list(classnames), torch.cat(before), torch.cat(after))
