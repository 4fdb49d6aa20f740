"""The numbers that are logged of a split, by tag: read out of its entry in results.json, where each stands once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import read_json

#: Tables of the reconstruction that are logged, by layer and token set
LOGGED = ("fvu", "cosine", "l0", "dead")


def tags(entry: Mapping[str, Any], arms: Collection[str] | None = None) -> dict[str, float]:
    """What is logged under `val/` or `test/`, without the stage in front.

    Args:
        entry: `reconstruction`, `zero_shot` and `shares` as in `evaluation.<split>` of results.json; what was not
            measured may be absent or null.
        arms: names (`Arm.name`) of the arms whose numbers are wanted; None: all of them.

    Returns:
        `fvu/<token set>` and `.../layer_<ll>`, the same for `cosine`, `l0` and `dead`; `share/features` and
        `share/skip`, with a linear skip by token set and layer as well; `zero_shot/original`,
        `zero_shot/replaced/<first>-<last>/<token set>`, `zero_shot/kl/...`, `zero_shot/mean_ablated` (all layers, all
        tokens), and `share/margin/<part>`; of sparse attention `attention/fvu/<token set>` and `.../layer_<ll>`, the
        same for `l0` and `dead`, and `zero_shot/attention`, `zero_shot/with_attention`. NaN for null.
    """
    out: dict[str, float] = {}
    for kind in LOGGED:
        out |= _by_layer(kind, (entry.get("reconstruction") or {}).get(kind) or {})
    for kind, tables in (entry.get("attention") or {}).items():
        if kind != "heads":
            out |= _by_layer(f"attention/{kind}", tables)
    shares = entry.get("shares") or {}
    if "features" in shares:
        whole, features = 1.0, shares["features"]
        if shares["skip"]:
            out |= _by_layer("share/features", features)
            whole = _number(features["all" if "all" in features else next(iter(features))]["mean"])
        out |= {"share/features": whole, "share/skip": 1 - whole}
    out |= _zero_shot((entry.get("zero_shot") or {}).get("arms") or [], arms)
    if logit := shares.get("logit"):
        margin = logit["margin"]
        whole = _number(margin["sum"]["value"])
        parts = {part: _number(found["value"]) for part, found in margin.items() if part != "sum"}
        out |= {f"share/margin/{part}": value / whole if whole else float("nan") for part, value in parts.items()}
    return out


def _zero_shot(arms: list[Mapping[str, Any]], wanted: Collection[str] | None) -> dict[str, float]:
    labelled = any(arm["n"] for arm in arms if arm["kind"] == "original")
    accuracies, divergences = {}, {}
    last = max((arm["last"] for arm in arms if arm["kind"] == "mean_ablated"), default=None)
    for arm in arms:
        place = f"{arm['first']}-{arm['last']}/{arm['tokens']}"
        name = "original" if arm["kind"] == "original" else f"{arm['kind']}/{place}"
        if wanted is not None and name not in wanted:
            continue
        if arm["kind"] == "original":
            accuracies["zero_shot/original"] = _number(arm["top1"]["value"])
        elif arm["kind"] == "replaced":
            accuracies[f"zero_shot/replaced/{place}"] = _number(arm["top1"]["value"])
            divergences[f"zero_shot/kl/{place}"] = _number(arm["kl"]["value"])
        elif arm["kind"] in ("attention", "with_attention"):
            accuracies[f"zero_shot/{arm['kind']}"] = _number(arm["top1"]["value"])
            divergences[f"zero_shot/kl/{arm['kind']}"] = _number(arm["kl"]["value"])
        elif (arm["kind"], arm["first"], arm["last"], arm["tokens"]) == ("mean_ablated", 0, last, "all"):
            accuracies["zero_shot/mean_ablated"] = _number(arm["top1"]["value"])
    return (accuracies if labelled else {}) | divergences


def _by_layer(kind: str, tables: Mapping[str, Any]) -> dict[str, float]:
    out: dict[str, float] = {}
    for name, table in tables.items():
        out[f"{kind}/{name}"] = _number(table["mean"])
        out |= {f"{kind}/{name}/layer_{layer:02d}": _number(value) for layer, value in enumerate(table["layers"])}
    return out


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def load_metrics(run: str | Path, stage: str) -> dict[str, float]:
    """The numbers of a run's last validation (`val`) or test (`test`) by tag, wherever results.json holds them.

    Raises:
        UserError: there was none.
    """
    path = Path(run) / "results.json"
    content = read_json(path) if path.exists() else {}
    logged = content.get("metrics", {}).get(stage)
    if logged is None:
        command = "validate" if stage == "val" else "test"
        raise UserError(f"{path} holds no numbers of {stage!r}: run `python -m clt_lightning {command} --run {run}`")
    of = logged.get("evaluation")
    whole = tags(content["evaluation"][of]) if of else {}
    return whole | {name: _number(value) for name, value in logged["values"].items()}
