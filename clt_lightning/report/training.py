"""The curves of a training, from the events that TensorBoard reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clt_lightning.report.numbers import to_list

#: Points of a curve; longer ones are thinned evenly
POINTS = 400
#: One drawing each: its title, and what its curves' tags begin with; further parts (a layer's) are left out
DRAWINGS = (
    ("Loss", ("train/loss",), 2),
    ("Unexplained variance (FVU), validation", ("val/fvu",), 1),
    ("Zero-shot accuracy, validation", ("val/zero_shot",), 3),
    ("Dead features, validation", ("val/dead",), 1),
    ("Active features (L0)", ("train/l0", "val/l0"), 1),
    ("Learning rate", ("train/lr",), 0),
)


def training_curves(run: Path) -> list[dict[str, Any]]:
    """`[{"title", "curves": [{"name", "x": steps, "y": values}]}]`; nothing without events of a training."""
    if not any(run.glob("events.out.tfevents.*")):
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # of pictures and histograms nothing is wanted, and 0 means all
    sizes = {"scalars": 4 * POINTS, "images": 1, "histograms": 1, "compressedHistograms": 1, "tensors": 1}
    events = EventAccumulator(str(run), size_guidance=sizes).Reload()
    tags = events.Tags()["scalars"]
    out = []
    for title, heads, depth in DRAWINGS:
        names = [tag for tag in tags for head in heads if _below(tag, head) in range(depth + 1)]
        curves = [curve for tag in names if _drawn(tag) and (curve := _curve(tag, events.Scalars(tag))) is not None]
        if curves:
            out.append({"title": title, "curves": curves})
    return out


def _below(tag: str, head: str) -> int:
    """How many parts a tag has below a head; -1 if it does not begin with it."""
    return tag[len(head) :].count("/") if tag == head or tag.startswith(f"{head}/") else -1


def _drawn(tag: str) -> bool:
    return "/layer_" not in tag and "/kl" not in tag


def _curve(tag: str, scalars: list[Any]) -> dict[str, Any] | None:
    # a run that was gone on with has some steps twice: the later value stands
    points = {int(s.step): float(s.value) for s in scalars}
    steps = sorted(points)
    step = max(1, -(-len(steps) // POINTS))
    kept = steps[::step] + ([steps[-1]] if steps and (len(steps) - 1) % step else [])
    values = to_list([points[s] for s in kept], 4)
    return {"name": tag, "x": kept, "y": values} if any(v is not None for v in values) else None
