"""A run's pages with the model behind them, for the browsers of this machine alone."""

from __future__ import annotations

from clt_lightning.server.http import LocalServer
from clt_lightning.server.session import Session, SessionOptions

__all__ = ["LocalServer", "Session", "SessionOptions"]
