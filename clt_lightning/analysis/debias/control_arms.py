"""Arms without features: heads, directions of the embedding, and other predictors."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from clt_lightning.analysis.debias.controls import (
    Heads,
    attribute_differences,
    class_differences,
    cue_directions,
    least_squares_read,
    projected,
)
from clt_lightning.analysis.debias.measure import arm, choose, told
from clt_lightning.analysis.debias.predictor import Edit, Head
from clt_lightning.analysis.debias.result import ArmResult
from clt_lightning.analysis.debias.setting import Setting
from clt_lightning.core.errors import UserError


def control_arms(of: Setting) -> list[ArmResult]:
    """All of them."""
    return [*_heads(of), *_directions(of), *_predictors(of)]


def _heads(of: Setting) -> list[ArmResult]:
    try:
        heads = Heads(of.clip)
        means, order = heads.means(of.sample), heads.ranked(of.balanced, of.head, of.groups)
    except UserError as error:
        of.note(f"heads are left out: {error}")
        return []

    def make(n: int) -> Edit:
        return partial(heads.ablated, order[:n], means)

    size, sizes = choose(of, make, len(order), True, "heads' direct writing")
    return [arm(of, "heads' direct writing", "heads", [make(size)], chosen=tuple(order[:size]), sizes=sizes)]


def _directions(of: Setting) -> list[ArmResult]:
    mean = of.train.embeddings.mean(0)

    def least_squares(name: str, kind: str, directions: Tensor) -> ArmResult:
        read = least_squares_read(directions, of.train)
        return arm(of, name, kind, [partial(projected, of.clip, directions, mean, read)])

    basis = cue_directions(of.train, of.val, of.groups, of.o.seed)
    arms = [
        arm(of, "probe direction projected out", "projection", [partial(projected, of.clip, basis, mean)]),
        least_squares("LEACE of the attribute", "erasure", attribute_differences(of.train, of.groups)),
    ]
    if of.unbiased_train is not None and of.unbiased_head is not None:
        found = class_differences(of.train, of.unbiased_train, of.n_classes)
        arms.append(least_squares("LEACE of what classes lose", "difference", found))
    return arms


def _predictors(of: Setting) -> list[ArmResult]:
    train, val = (part.select(of.groups.balanced(part.need_groups(""), of.o.seed)) for part in (of.train, of.val))
    heads = {"retrained": ("head retrained, groups balanced", Head.probe(train, val, of.n_classes, ""))}
    if of.unbiased_head is not None:
        heads["unbiased"] = ("head of unbiased data", of.unbiased_head)
    return [
        told(of, name, kind, [head.right(of.test.embeddings, of.test.labels)]) for kind, (name, head) in heads.items()
    ]
