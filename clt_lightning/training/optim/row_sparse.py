"""Adam for gradients of which most rows are zero: a feature that did not fire has none.

In a config:

```yaml
model:
  optimizer: {class_path: clt_lightning.training.optim.RowSparseAdam, init_args: {lr: 4.0e-4}}
```

**What a zero gradient does.** Dense Adam multiplies a row's moments by beta_1 and beta_2, and still moves the weights.
In step t, g steps after the last gradient, with `r = beta_1 / sqrt(beta_2)` (0.90 by default),

    |move| <= lr * r^g * |m| / sqrt(v) * sqrt(1 - beta_2^t) / (1 - beta_1^t)  <=  7.3 * lr * r^g,

m and v being those of the last gradient (|m| / sqrt(v) <= 7.3 by Cauchy-Schwarz, the last factor is at most 1, both for
the default betas). So a row is *moving* for H steps after a gradient, H the smallest with `r^H < eps / 10` (174 for
fp32), and *resting* afterwards: the moves that are left out sum to less than 1e-6 lr, under the weights' rounding. A
resting row's moments are brought up to date in closed form, `m * beta_1^g` and `v * beta_2^g`, when it fires again.

- `exact` updates moving rows in every step and skips resting ones. The weights are dense AdamW's, to rounding, at every
  moment. (Replaying the missed moves when a row fires next would not do: the encoder reads all rows in every step, and
  would see them without these moves.)
- `lazy` updates the rows with a gradient only, moments included: the variant of torch.optim.SparseAdam. Moments of
  other rows stand still, and so do their weights (no momentum, no weight decay).

**When it pays.** Fused dense AdamW moves 28 bytes per weight (fp32). This class looks at every gradient to find its
rows (unless the parameter has an attribute `touched_rows`, a bool `(rows,)` tensor that the module sets in every step;
it leaves `updated_rows` there, the int64 numbers of the rows that it moved in a step, None for all), and
moves several times 28 bytes per weight of the rows that it updates, since it is made of torch operations. A step's time
relative to fused AdamW, by the share of rows that are updated (one CPU thread, 19 M weights): all 1.2, 50 % 2.1 (lazy
1.7), 20 % 0.7, 10 % 0.4, 1 % 0.2. `exact` therefore falls back to the fused kernel for a parameter when more than
`dense_above` of its rows move. With the batch sizes of a usual CLT nearly all features fire within H steps: gains are
to be had from very wide dictionaries with many dead features.

State is in fp32 (float64 for float64 parameters). 8-bit state: any `torch.optim.Optimizer` can stand in the config, for
instance `{class_path: bitsandbytes.optim.AdamW8bit, init_args: {lr: 4.0e-4}}` or `torchao.optim.AdamW8bit`; neither is
a dependency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from clt_lightning.core.errors import UserError
from clt_lightning.training.optim.dense import memory_order


class RowSparseAdam(torch.optim.Optimizer):
    """AdamW that touches only rows (features) that still move; dense AdamW's result, or its lazy variant.

    A parameter's rows are the slices along its first dimension; parameters of one dimension are dense.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square. `exact` needs betas[0]^2 < betas[1].
        eps: added to the square root of the second moment.
        weight_decay: decoupled weight decay, a step: `w *= 1 - lr * weight_decay`. In `exact` resting rows decay too
            (one more pass over them); in `lazy` only the rows with a gradient do.
        catch_up: `exact` equals dense AdamW in every step; `lazy` leaves rows without a gradient as they are.
        dense_above: share of rows to update above which the fused dense kernel is used (`lazy`: only for all rows).

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        catch_up: Literal["exact", "lazy"] = "exact",
        dense_above: float = 0.25,
    ) -> None:
        betas = (float(betas[0]), float(betas[1]))
        if catch_up not in ("exact", "lazy"):
            raise UserError(f"RowSparseAdam: catch_up must be exact or lazy, got {catch_up!r}")
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay), ("dense_above", dense_above)):
            if not value >= 0:
                raise UserError(f"RowSparseAdam: {name} must not be negative, got {value}")
        if not all(0 <= b < 1 for b in betas):
            raise UserError(f"RowSparseAdam: betas must lie in [0, 1), got {betas}")
        if catch_up == "exact" and not betas[0] ** 2 < betas[1]:
            raise UserError(
                f"RowSparseAdam: catch_up=exact needs betas[0]^2 < betas[1], got {betas}: rows would never come to rest"
            )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        own = {"catch_up": catch_up, "dense_above": dense_above}
        # which torch adds when it loads a state: the files of resumed and undisturbed runs are to be equal
        super().__init__(params, defaults | own | {"differentiable": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update.

        Args:
            closure: computes the loss again, with gradients.

        Returns:
            the closure's loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            masks = [self._masks(p, group) for p in params]
            # one transfer for all parameters: every one stalls the device
            sums = [m.sum() for active, late in masks for m in (active, late, active & late)]
            counts = torch.stack(sums).tolist() if sums else []
            for i, (p, (active, late)) in enumerate(zip(params, masks)):
                n_active, n_late, n_both = counts[3 * i : 3 * i + 3]
                exact, rows = group["catch_up"] == "exact", None
                if n_active < active.numel() and not (exact and n_active > group["dense_above"] * active.numel()):
                    rows, late, n_late = active.nonzero().flatten(), active & late, n_both
                    if exact and group["weight_decay"]:
                        _decay_resting(p, active, float(group["lr"]) * group["weight_decay"])
                p.updated_rows = rows
                if exact:
                    self._catch_up(p, rows, late.nonzero().flatten() if n_late else None, group["betas"])
                if rows is None and p.dtype == _state_dtype(p):
                    self._fused(p, group)
                elif rows is None or n_active:
                    self._rows(p, rows, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes state back. That of a torch.optim.AdamW fits as well: all rows count as just touched then."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        # the base class casts all state to the parameter's type: counters and fp32 moments must keep theirs
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, p in zip(ids, params):
            saved = state_dict["state"].get(index)
            if not saved:
                continue
            state = self.state[p]
            state["step"] = int(saved["step"])
            for name in ("exp_avg", "exp_avg_sq"):  # in the parameter's layout, which the fused kernel walks along
                state[name] = torch.empty_like(p, dtype=_state_dtype(p)).copy_(saved[name])
            for name in ("current", "touched"):
                counters = _row_counters(p, state["step"])
                state[name] = counters.copy_(saved[name]) if name in saved else counters

    # -- parts -------------------------------------------------------------------------------------------------------
    def _masks(self, p: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """`(rows,)` bool each: the rows to update, and those among all whose moments lag behind. Counts the step."""
        assert p.grad is not None
        if p.grad.is_sparse:
            raise UserError("RowSparseAdam finds the rows of dense gradients; for sparse tensors take SparseAdam")
        state = self.state[p]
        if not state:
            kind = _state_dtype(p)
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p, dtype=kind)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=kind)
            # the step that a row's moments are brought up to, and the step of its last gradient
            state["current"] = _row_counters(p, 0)
            state["touched"] = _row_counters(p, -_NEVER)
        state["step"] += 1
        active = _touched(p)
        state["touched"].masked_fill_(active, state["step"])
        if group["catch_up"] == "lazy":
            return active, torch.zeros_like(active)
        active = state["step"] - state["touched"] <= _moving_steps(group["betas"], _state_dtype(p))
        return active, state["current"] < state["step"] - 1

    def _catch_up(self, p: Tensor, rows: Tensor | None, late: Tensor | None, betas: tuple[float, float]) -> None:
        """Decays the moments of those of the rows to be updated that have rested."""
        state = self.state[p]
        step, current = state["step"], state["current"]
        if late is not None:
            gap = (step - 1 - current[late]).to(torch.float64)
            for name, beta in zip(("exp_avg", "exp_avg_sq"), betas):
                factor = (beta**gap).to(state[name].dtype)
                for block in _blocks(state[name], p):
                    block.index_copy_(0, late, block.index_select(0, late) * _column(factor, block))
        if rows is None:
            current.fill_(step)
        else:
            current[rows] = step

    def _fused(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        grad = p.grad
        assert grad is not None
        if grad.stride() != p.stride():
            grad = torch.empty_like(p).copy_(grad)
        order = memory_order(p)  # the kernel copies what does not lie in this order
        step = torch.tensor(float(state["step"] - 1), device=p.device)
        beta1, beta2 = group["betas"]
        adamw(
            [p.permute(order)],
            [grad.permute(order)],
            [state["exp_avg"].permute(order)],
            [state["exp_avg_sq"].permute(order)],
            [],
            [step],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=float(group["lr"]),
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _rows(self, p: Tensor, rows: Tensor | None, group: dict[str, Any]) -> None:
        """Adam's update of some rows, a block at a time, in the state's type."""
        state, lr = self.state[p], float(group["lr"])
        beta1, beta2 = group["betas"]
        correction1 = 1 - beta1 ** state["step"]
        correction2 = math.sqrt(1 - beta2 ** state["step"])
        assert p.grad is not None
        parts = zip(*(_blocks(t, p) for t in (p, p.grad, state["exp_avg"], state["exp_avg_sq"])))
        for weights, grads, means, squares in parts:
            w, g, m, v = (t if rows is None else t.index_select(0, rows) for t in (weights, grads, means, squares))
            g = g.to(m.dtype)
            m = m.lerp(g, 1 - beta1)
            v = (v * beta2).addcmul_(g, g, value=1 - beta2)
            new = w.to(m.dtype) * (1 - lr * group["weight_decay"])
            new.addcdiv_(m, (v.sqrt() / correction2).add_(group["eps"]), value=-lr / correction1)
            for target, value in ((weights, new), (means, m), (squares, v)):
                if rows is None:
                    target.copy_(value)
                else:
                    target.index_copy_(0, rows, value.to(target.dtype))


#: Older than any window: a row that has never had a gradient
_NEVER = 2**30


def _state_dtype(p: Tensor) -> torch.dtype:
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def _row_counters(p: Tensor, value: int) -> Tensor:
    return torch.full((p.shape[0] if p.dim() else 1,), value, dtype=torch.int32, device=p.device)


def _touched(p: Tensor) -> Tensor:
    """`(rows,)` bool: rows with a gradient that is not exactly zero (NaN counts as one)."""
    given: Tensor | None = getattr(p, "touched_rows", None)
    rows = p.shape[0] if p.dim() else 1
    if given is not None:
        if given.shape != (rows,) or given.dtype != torch.bool:
            raise UserError(f"touched_rows must be a bool tensor of shape ({rows},), got {given.dtype} {given.shape}")
        return given.to(p.device)
    if p.dim() < 2:
        return torch.ones(rows, dtype=torch.bool, device=p.device)
    assert p.grad is not None
    return torch.stack([_nonzero_rows(g) for g in _blocks(p.grad, p.grad)]).any(0)


def _nonzero_rows(t: Tensor) -> Tensor:
    """`(rows,)` bool, without a temporary of the tensor's size."""
    dim = list(range(1, t.dim()))
    if t.is_cuda:
        largest: Tensor = torch.linalg.vector_norm(t, ord=math.inf, dim=dim)
        return largest != 0
    # on CPU that norm takes as long as the whole update; two plain reductions take a seventh of it
    return (t.amax(dim) != 0) | (t.amin(dim) != 0)


def _decay_resting(p: Tensor, active: Tensor, rate: float) -> None:
    """Weight decay of resting rows: all that dense AdamW does to their weights."""
    factor = torch.ones(active.shape, dtype=p.dtype, device=p.device).masked_fill_(~active, 1 - rate)
    p.mul_(_column(factor, p))


def _moving_steps(betas: tuple[float, float], dtype: torch.dtype) -> int:
    """H: steps after its last gradient in which a row still moves by more than rounding."""
    ratio = betas[0] / math.sqrt(betas[1])
    return 1 if ratio == 0 else math.ceil(math.log(torch.finfo(dtype).eps / 10) / math.log(ratio))


def _column(values: Tensor, like: Tensor) -> Tensor:
    """`(rows,)` as `(rows, 1, ...)`, to be multiplied with `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _blocks(t: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """Slices of all rows that are contiguous where the layout of `like` allows: W_dec `(F, targets, d)` lies target by
    target.
    """
    if like.dim() == 3 and like.stride(0) < like.stride(1):
        return t.unbind(1)
    return (t,)
