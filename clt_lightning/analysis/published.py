"""What was published of Cross-Layer Transcoders on CLIP, to be put beside what a run has measured.

Most numbers were read off a poster's plots: about 0.1 points for accuracies, 0.001 for R2 and cosine. None of them is a
result of this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SOURCE = (
    "Chatzoudis et al. 2026, Can Cross-Layer Transcoders Replace Vision Transformer Activations? (arXiv 2604.13304)"
)
CAVEATS = (
    f"published: {SOURCE}; '~' was read off the poster's plots (accuracies to about 0.1 points, R2, cosine to 0.001).",
    "F, k, penalty, learning rate, batch, steps, prompts, the 100 classes of ImageNet-100 and the label protocol of "
    "COCO are not published: compare with the baseline measured in the same run, not with theirs.",
    "COCO here: top-1 on the largest object; their 43 % fits no reading of the figures that CLIP's authors give.",
)
BACKBONES = ("B/32", "B/16")
SETS = {"cifar100": "CIFAR-100", "coco": "COCO", "imagenet100": "ImageNet-100"}
ACTIVATIONS = ("JumpReLU", "TopK", "AbsTopK")
#: first layers of the windows that reach to the last of 12
FIRSTS = (0, 3, 7, 10)

_BASELINES = {
    ("B/32", "cifar100"): "61.65",
    ("B/32", "coco"): "43.12",
    ("B/32", "imagenet100"): "80.42",
    ("B/16", "cifar100"): "~65.97",
    ("B/16", "coco"): "~43.56",
    ("B/16", "imagenet100"): "~84.33",
}
#: R2 and cosine, mean over layers, in the order of ACTIVATIONS
_RECONSTRUCTION = {
    ("B/32", "cifar100"): ("~.889", "~.941", "~.910", "~.953", "~.889", "~.942"),
    ("B/32", "coco"): ("~.897", "~.946", "~.912", "~.954", "~.893", "~.944"),
    ("B/32", "imagenet100"): ("~.897", "~.946", "~.899", "~.947", "~.850", "~.921"),
    ("B/16", "cifar100"): ("~.937", "~.957", "~.937", "~.956", "~.920", "~.946"),
    ("B/16", "coco"): ("~.954", "~.972", "~.938", "~.961", "~.894", "~.934"),
    ("B/16", "imagenet100"): ("~.951", "~.969", "~.945", "~.965", "~.908", "~.942"),
}
#: zero-shot top-1 with a window replaced at all tokens, ReLU-Top-k, in the order of FIRSTS
_CASCADE = {
    ("B/32", "cifar100"): ("~51.1", "~54.9", "~62.1", "~61.2"),
    ("B/32", "coco"): ("~39.1", "~41.3", "~43.1", "~43.1"),
    ("B/32", "imagenet100"): ("~68.9", "~75.3", "~80.5", "~80.6"),
    ("B/16", "cifar100"): ("~58.8", "~60.8", "~65.5", "~65.9"),
    ("B/16", "coco"): ("~42.1", "~42.7", "~43.6", "~43.9"),
    ("B/16", "imagenet100"): ("~81.0", "~82.7", "~84.3", "~84.3"),
}
#: drop the top term and keep the top 4 of 12, at all tokens and at [CLS]; B/32
_FAITHFULNESS = {
    "cifar100": ("59.68", "59.91", "59.96", "60.72"),
    "coco": ("42.98", "42.78", "43.02", "43.00"),
    "imagenet100": ("74.94", "74.86", "80.56", "80.48"),
}
COLUMNS = ("R2", "cosine", "original", *(f"{first}->11" for first in FIRSTS))
TERM_COLUMNS = ("drop top 1, all", "drop top 1, cls", "keep top 4, all", "keep top 4, cls")


@dataclass(frozen=True)
class Cell:
    """One of the paper's 18 settings.

    Attributes:
        backbone: `B/32` or `B/16`.
        data: a key of `SETS`.
        activation: one of `ACTIVATIONS`.
    """

    backbone: str
    data: str
    activation: str

    def __str__(self) -> str:
        return f"{self.backbone} {SETS[self.data]} {self.activation}"

    def published(self) -> dict[str, str]:
        """What was published, by column; what was not is left out."""
        place = self.backbone, self.data
        at = 2 * ACTIVATIONS.index(self.activation)
        found = dict(zip(COLUMNS, (*_RECONSTRUCTION[place][at : at + 2], _BASELINES[place])))
        if self.activation == "TopK":
            found |= dict(zip(COLUMNS[3:], _CASCADE[place]))
            if self.backbone == "B/32":
                found |= dict(zip(TERM_COLUMNS, _FAITHFULNESS[self.data]))
        return found


def all_cells() -> list[Cell]:
    """The 18 settings."""
    return [Cell(b, s, a) for b in BACKBONES for s in SETS for a in ACTIVATIONS]


def cell_of(results: Mapping[str, Any]) -> tuple[Cell | None, str]:
    """Which setting a run's results.json belongs to, and what it does otherwise; or None, and why.

    Args:
        results: the file's content.
    """
    run = results.get("run") or {}
    clip, transcoder = run.get("clip") or {}, run.get("transcoder") or {}
    data = ((run.get("data") or {}).get("description") or {}).get("set")
    name, activation = str(clip.get("name")), str((transcoder.get("activation") or {}).get("class_path"))
    backbone = next((b for b in BACKBONES if name.replace("-", "").startswith(f"ViT{b.replace('/', '')}")), None)
    if backbone is None or data not in SETS:
        return None, f"{name} on {data} is no setting of the paper"
    if activation.rsplit(".", 1)[-1] not in ACTIVATIONS:
        return None, f"{activation} is none of its activations ({', '.join(ACTIVATIONS)})"
    odd = []
    if transcoder.get("skip"):
        odd.append("linear skip")
    if transcoder.get("topology") != "cross_layer":
        odd.append(str(transcoder.get("topology")))
    if clip.get("pretrained") != "openai":
        odd.append(f"weights {clip.get('pretrained')}")
    return Cell(backbone, data, activation.rsplit(".", 1)[-1]), ", ".join(odd)


def measured(evaluation: Mapping[str, Any], intervals: bool = True) -> dict[str, str]:
    """A run's numbers by column, from `evaluation.<split>` of its results.json; what was not measured is left out.

    Args:
        evaluation: the entry.
        intervals: with 95 % intervals behind accuracies.
    """
    found: dict[str, str] = {}
    reconstruction = evaluation.get("reconstruction") or {}
    for column, kind in (("R2", "r2"), ("cosine", "cosine")):
        mean = ((reconstruction.get(kind) or {}).get("all") or {}).get("mean")
        if mean is not None:
            found[column] = f"{mean:.3f}"
    last = evaluation.get("layers", 12) - 1
    for arm in (evaluation.get("zero_shot") or {}).get("arms", []):
        if arm["kind"] == "original":
            found["original"] = _percent(arm["top1"], intervals)
        elif (arm["kind"], arm["tokens"], arm["last"]) == ("replaced", "all", last) and arm["first"] in FIRSTS:
            found[f"{arm['first']}->{last}"] = _percent(arm["top1"], intervals)
    for entry in evaluation.get("faithfulness") or []:
        if (entry["ranking"], entry["ablation"], entry["layer"]) == ("dataset", "zero", last) and entry["terms"] > 4:
            found[f"drop top 1, {entry['tokens']}"] = _percent(entry["drop_top"]["top1"][1], intervals)
            kept = entry["drop_bottom"]["top1"][entry["terms"] - 4]
            found[f"keep top 4, {entry['tokens']}"] = _percent(kept, intervals)
    return {column: found[column] for column in (*COLUMNS, *TERM_COLUMNS) if column in found}


def _percent(value: Mapping[str, Any], interval: bool) -> str:
    if value.get("value") is None:
        return "-"
    text = f"{100 * value['value']:.2f}"
    return f"{text} ({100 * value['low']:.1f}..{100 * value['high']:.1f})" if interval else text
