"""Linear read-outs of tensors: logistic and ridge regression, k-sparse or not, regularised by a validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clt_lightning.core.errors import UserError

#: Strengths of the penalty that are tried, on standardised columns, strong to weak
PENALTIES = tuple(10.0**-power for power in range(-1, 6))
_STEPS = 120
#: Images that say nothing, added to those on which a column departs from its mean before columns are compared
_UNSEEN = 8


@dataclass(frozen=True)
class Rows:
    """One split of what is read, and what is to be read from it.

    Attributes:
        x: `(n, d)` float32.
        y: `(n,)` int64 classes, or `(n,)` float32 numbers.
    """

    x: Float[Tensor, "n d"]
    y: Int[Tensor, " n"] | Float[Tensor, " n"]

    def columns(self, chosen: Int[Tensor, " k"]) -> Rows:
        """Some of the columns."""
        return Rows(self.x[:, chosen], self.y)


@dataclass(frozen=True)
class Probe:
    """A linear read-out, `x @ weight + bias`.

    Attributes:
        weight: `(d, outputs)`, of the columns that it reads.
        bias: `(outputs,)`.
        penalty: the strength that validation chose.
        chosen: the columns of a k-sparse probe, best first; None: all.
    """

    weight: Float[Tensor, "columns outputs"]
    bias: Float[Tensor, " outputs"]
    penalty: float
    chosen: Int[Tensor, " columns"] | None = None

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n outputs"]:
        """`(n, outputs)` of all columns `(n, d)`."""
        return (x if self.chosen is None else x[:, self.chosen]) @ self.weight + self.bias

    def classes(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """`(n,)` the class of the largest output."""
        return self(x).argmax(1)


def fit_classes(train: Rows, val: Rows, n_classes: int, k: int | None = None, intercept: bool = True) -> Probe:
    """Multinomial logistic regression; of the penalties the one with the best accuracy on `val`.

    They are tried from strong to weak, until two in a row are no better.

    Args:
        train: to learn from; labels in 0..n_classes-1.
        val: to choose the penalty on.
        n_classes: columns of the result.
        k: read so many columns alone, those that differ most between the classes on `train` (`class_score`).
        intercept: whether a constant is learned, and columns are centred.

    Raises:
        UserError: fewer than two classes in `train`, an empty split, or a k that is none.
    """
    if len(val.y) == 0:
        raise UserError("the validation split has no labelled image to choose the regularisation on")
    if len(torch.unique(train.y)) < 2:
        raise UserError("a probe needs at least two classes among the training images")
    chosen = None if k is None else best_columns(class_score(train.x, train.y, n_classes), k)
    train, val = (train, val) if chosen is None else (train.columns(chosen), val.columns(chosen))
    mean, std = _scales(train.x, intercept)
    z, z_val = (train.x - mean) / std, (val.x - mean) / std
    state = torch.zeros(z.shape[1] + 1, n_classes, dtype=z.dtype)
    best: tuple[float, float, Tensor] | None = None
    for penalty in PENALTIES:
        state = _logistic(z, train.y, state, penalty, intercept)
        right = float(((z_val @ state[:-1] + state[-1]).argmax(1) == val.y).float().mean())
        if best is None or right > best[0]:
            best = (right, penalty, state)
        elif penalty < 0.05 * best[1]:  # two in a row, from strong to weak, were no better
            break
    assert best is not None
    return _probe(best[2], best[1], mean, std, chosen)


def fit_numbers(train: Rows, val: Rows, k: int | None = None) -> Probe:
    """Ridge regression of one number; of all penalties the one with the least squared error on `val`.

    Args:
        train: to learn from.
        val: to choose the penalty on.
        k: read so many columns alone, those that correlate most with the number on `train` (rare ones count less, as
            in `class_score`).

    Raises:
        UserError: an empty split, a number that never changes, or a k that is none.
    """
    if len(val.y) == 0 or len(train.y) == 0:
        raise UserError("a probe needs training and validation images")
    if float(train.y.std(correction=0)) == 0:
        raise UserError("what is to be read never changes among the training images")
    chosen = None if k is None else best_columns(_correlation(train.x, train.y).square() * support(train.x), k)
    train, val = (train, val) if chosen is None else (train.columns(chosen), val.columns(chosen))
    mean, std = _scales(train.x, True)
    z, z_val = ((train.x - mean) / std).double(), ((val.x - mean) / std).double()
    level = train.y.double().mean()
    gram, right_side = z.T @ z / len(z), z.T @ (train.y.double() - level) / len(z)
    best: tuple[float, float, Tensor] | None = None
    for penalty in PENALTIES:
        weight = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), right_side)
        error = float((z_val @ weight + level - val.y).square().mean())
        if best is None or error < best[0]:
            best = (error, penalty, torch.cat([weight, level[None]])[:, None].float())
    assert best is not None
    return _probe(best[2], best[1], mean, std, chosen)


def f_statistic(x: Float[Tensor, "n d"], y: Int[Tensor, " n"], n_classes: int) -> Float[Tensor, " d"]:
    """`(d,)` one-way analysis of variance of each column between the classes; 0 for a column that never changes."""
    counts = torch.bincount(y, minlength=n_classes).to(x.dtype)
    occurs = counts > 0
    means = torch.zeros(n_classes, x.shape[1], dtype=x.dtype).index_add_(0, y, x) / counts.clamp(min=1)[:, None]
    between = (counts[:, None] * (means - x.mean(0)).square()).sum(0) / max(int(occurs.sum()) - 1, 1)
    within = (x - means[y]).square().sum(0) / max(len(y) - int(occurs.sum()), 1)
    return torch.where(between > 0, between / within.clamp(min=1e-20), torch.zeros_like(between))


def class_score(x: Float[Tensor, "n d"], y: Int[Tensor, " n"], n_classes: int) -> Float[Tensor, " d"]:
    """How much of each column's variance lies between the classes, less where few images are behind it.

    The F statistic orders columns by the share of their variance between the classes. Of thousands of rare features
    some fire on two images that happen to be of one class, and with few images per class their share is 1. So the share
    is what it would be had `_UNSEEN` more images been seen, as far from the mean and of chance classes (`support`).
    """
    f = f_statistic(x.double(), y, n_classes)
    occurs = int((torch.bincount(y, minlength=n_classes) > 0).sum())
    ratio = f * max(occurs - 1, 1) / max(len(y) - occurs, 1)
    return (ratio / (1 + ratio) * support(x)).to(x.dtype)


def support(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """`m / (m + _UNSEEN)` of each column, m the number of rows that make its variance; 0 for a column of constants.

    m is the sum of the squared deviations, squared, over the sum of their squares: m of a feature that fires on few
    images, a third of the rows of a normal column.
    """
    squares = (x.double() - x.double().mean(0)).square()
    rows = squares.sum(0).square() / squares.square().sum(0).clamp(min=1e-300)
    return rows / (rows + _UNSEEN)


def best_columns(score: Float[Tensor, " d"], k: int) -> Int[Tensor, " k"]:
    """The k columns of the largest score, best first.

    Raises:
        UserError: no such k.
    """
    if not 1 <= k <= len(score):
        raise UserError(f"a k-sparse probe of {len(score):,} columns reads 1 to {len(score):,} of them, got k = {k}")
    return score.argsort(descending=True, stable=True)[:k]


def spearman(
    x: Float[Tensor, "n d"], y: Float[Tensor, " n"] | Float[Tensor, "n m"], chunk: int = 64
) -> Float[Tensor, " d"] | Float[Tensor, "m d"]:
    """Rank correlation of each column of x with a target, or with each of m; ties share their mean rank.

    Args:
        x: `(n, d)`.
        y: `(n,)`, or `(n, m)`.
        chunk: columns at once.

    Returns:
        `(d,)`, or `(m, d)`; constants give 0.
    """
    ranks = _ranks(y[None] if y.ndim == 1 else y.T)
    found = []
    for start in range(0, x.shape[1], chunk):
        part = _ranks(x[:, start : start + chunk].T).T
        found.append(torch.stack([_correlation(part, own) for own in ranks]))
    whole = torch.cat(found, 1).float() if found else torch.zeros(len(ranks), 0)
    return whole[0] if y.ndim == 1 else whole


def _ranks(rows: Tensor) -> Tensor:
    rows = rows.contiguous().float()
    ordered = rows.sort(1).values
    low = torch.searchsorted(ordered, rows, right=False)
    return (low + torch.searchsorted(ordered, rows, right=True)).double() / 2


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.double(), y.double()
    x, y = x - x.mean(0), y - y.mean()
    scale = x.square().sum(0).sqrt() * y.square().sum().sqrt()
    return torch.where(scale > 0, (y @ x) / scale.clamp(min=1e-30), torch.zeros_like(scale))


def _scales(x: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    mean = x.mean(0) if centred else torch.zeros_like(x[0])
    std = (x - mean).square().mean(0).sqrt()
    return mean, torch.where(std > 1e-12, std, torch.ones_like(std))


def _logistic(z: Tensor, y: Tensor, start: Tensor, penalty: float, intercept: bool) -> Tensor:
    """`(d + 1, classes)`: weights, and the constants in the last row; begins where a stronger penalty ended."""
    weight = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=_STEPS,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = z @ weight[:-1] + (weight[-1] if intercept else 0)
        value = F.cross_entropy(logits, y) + penalty / 2 * weight[:-1].square().sum() / weight.shape[1]
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach()


def _probe(state: Tensor, penalty: float, mean: Tensor, std: Tensor, chosen: Tensor | None) -> Probe:
    """In units of the columns as they are."""
    weight = state[:-1] / std[:, None]
    return Probe(weight, state[-1] - mean @ weight, penalty, chosen)


def accuracy(predicted: Int[Tensor, " n"], y: Int[Tensor, " n"]) -> float:
    """Share that is right."""
    return float((predicted == y).float().mean())


def mean_recall(predicted: Int[Tensor, " n"], y: Int[Tensor, " n"], n_classes: int) -> float:
    """Mean over the classes that occur of the share that is right."""
    count = torch.bincount(y, minlength=n_classes)
    right = torch.bincount(y[predicted == y], minlength=n_classes)
    return float((right[count > 0] / count[count > 0]).mean())


def check_ks(ks: Sequence[int], width: int) -> tuple[int, ...]:
    """Which of some k a tensor of so many columns has: larger ones are left out, 0 and less refused.

    Raises:
        UserError: a k below 1.
    """
    if any(k < 1 for k in ks):
        raise UserError(f"a k-sparse probe reads at least one column, got k = {min(ks)}")
    return tuple(dict.fromkeys(k for k in ks if k <= width))
