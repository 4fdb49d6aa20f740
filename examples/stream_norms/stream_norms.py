"""An analysis and its page from outside the package: how large the residual stream is, beside the transcoder's error.

test --run RUN --evaluate.extra+=stream_norms.StreamNorms      (this folder on PYTHONPATH)
report --run RUN --page stream_norms.PAGE
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clt_lightning.analysis import Analysis, Batch, Subject
from clt_lightning.metrics import ExactMetric, select
from clt_lightning.report.draft import Draft
from clt_lightning.report.page import Page


class Norms(ExactMetric):
    """Sums over a split: float64, the same for any batches and number of processes."""

    sums: Tensor
    tokens: Tensor

    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2, n_layers, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, stream: Tensor, error: Tensor) -> None:
        """`(layers, tokens, d)` each."""
        norms = torch.stack([part.double().norm(dim=-1).sum(1) for part in (stream, error)])
        self.sums += norms.to(self.sums)
        self.tokens += stream.shape[1]

    def compute(self) -> Tensor:
        return self.sums / self.tokens


class StreamNorms(Analysis):
    """Mean norm of the residual stream before each block, and of what the transcoder leaves out of its MLP.

    Args:
        token_set: at which tokens: cls, register, patch or all.
    """

    name = "stream_norms"
    needs = ("streams",)

    def __init__(self, token_set: str = "patch") -> None:
        self.token_set = token_set

    def begin(self, subject: Subject) -> None:
        self._norms = Norms(subject.clt.n_layers).to(subject.device)

    def update(self, batch: Batch) -> None:
        stream = torch.stack([batch.seen.streams[layer].flatten(0, 1) for layer in sorted(batch.seen.streams)])
        parts = (
            select(part, self.token_set, batch.layout).flatten(1, 2) for part in (stream, batch.seen.y - batch.y_hat)
        )
        self._norms.update(*parts)

    def result(self) -> dict[str, Any]:
        stream, error = self._norms.compute().tolist()
        return {"tokens": self.token_set, "stream": stream, "error": error}


def write(draft: Draft) -> None:
    """The page's table, for a download; the page itself reads the numbers out of the evaluation."""
    found = ((draft.source.evaluation or {}).get("extra") or {}).get(StreamNorms.name)
    if found:
        rows = list(zip(range(len(found["stream"])), found["stream"], found["error"]))
        draft.files[StreamNorms.name] = [draft.table(StreamNorms.name, ["layer", "stream", "error"], rows)]


PAGE = Page(
    name="stream_norms",
    title="Stream norms",
    about="How large the residual stream is, beside what the transcoder leaves out.",
    source="`extra.stream_norms`",
    needs="python -m clt_lightning test --run {run} --evaluate.extra+=stream_norms.StreamNorms",
    addresses=("stream_norms",),
    write=write,
    script=Path(__file__).with_suffix(".js"),
)
