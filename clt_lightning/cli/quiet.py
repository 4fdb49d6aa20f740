"""Messages of other libraries that the user of the command line can do nothing about. Only these: others are shown."""

from __future__ import annotations

import logging
import re
import warnings

from lightning.pytorch.utilities.rank_zero import rank_zero_module

#: beginnings of warnings
WARNINGS = (
    # Lightning's DDP knows this word alone, and the other one would broadcast buffers at the start
    "`broadcast_buffers` is deprecated. Use `forward_sync_buffers`",
    # Lightning's own use of torch's trees
    "`isinstance(treespec, LeafSpec)` is deprecated",
    # a machine that has Slurm is used without it
    "The `srun` command is available on your system but is not used.",
)
#: parts of log lines
TIPS = ("try installing [litlogger]", "try installing [litmodels]")


def _is_no_tip(record: logging.LogRecord) -> bool:
    return not any(tip in record.getMessage() for tip in TIPS)


def quieten() -> None:
    """Filters these messages, for the rest of the process."""
    for text in WARNINGS:
        warnings.filterwarnings("ignore", message=re.escape(text))
    rank_zero_module.log.addFilter(_is_no_tip)  # a second time changes nothing
