"""The report's figures by matplotlib, as SVG and PNG, for papers and slides; also drawn into TensorBoard."""

from __future__ import annotations
