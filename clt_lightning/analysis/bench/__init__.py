"""What a transcoder's features are worth, each number beside a control and beside an untrained transcoder."""

from clt_lightning.analysis.bench.null import untrained
from clt_lightning.analysis.bench.result import BenchResult, Measure
from clt_lightning.analysis.bench.study import BenchOptions, bench

__all__ = ["BenchOptions", "BenchResult", "Measure", "bench", "untrained"]
