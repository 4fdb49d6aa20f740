"""Pages and figures of a run: a folder that opens in a browser from the disk, without a server or a network."""

from __future__ import annotations

from clt_lightning.report.build import Built, ReportOptions, build_report

__all__ = ["Built", "ReportOptions", "build_report"]
