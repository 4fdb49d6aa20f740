"""Pages and figures of a run: a folder that opens in a browser from the disk, without a server or a network."""

from __future__ import annotations

from clt_lightning.report.build import Built, build_comparison, build_report
from clt_lightning.report.options import ReportOptions

__all__ = ["Built", "ReportOptions", "build_comparison", "build_report"]
