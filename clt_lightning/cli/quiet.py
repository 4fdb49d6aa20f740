"""Messages of other libraries that the user of the command line can do nothing about. Only these: others are shown."""

from __future__ import annotations

import logging
import re
import threading
import warnings

from lightning.pytorch.utilities.rank_zero import rank_zero_module

from clt_lightning.core.files import disk_reason
from clt_lightning.core.terminal import Speaker, first_process

#: beginnings of warnings, as regular expressions
WARNINGS = (
    # Lightning's DDP knows this word alone, and the other one would broadcast buffers at the start
    r"`broadcast_buffers` is deprecated\. Use `forward_sync_buffers`",
    # Lightning's own use of torch's trees
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # a machine that has Slurm is used without it
    r"The `srun` command is available on your system but is not used\.",
    # it counts the batches of an epoch; ours are logged by the step of the run
    r"The number of training batches \(",
    # the backbone is, for ever
    r"Found 1 module\(s\) in eval mode at the start of training",
    # a run that goes on in its own folder
    r"Checkpoint directory .*version_\d+/checkpoints exists and is not empty",
)
#: beginnings of log lines: what `Summary` says better, what the config says, what is done as it was asked for
LOG_LINES = (
    "GPU available: ",
    "TPU available: ",
    "HPU available: ",
    "Seed set to ",
    "LOCAL_RANK: ",
    "Initializing distributed: ",
    "-" * 100 + "\ndistributed_backend=",
    "Using bfloat16 Automatic Mixed Precision",
    "Using 16bit Automatic Mixed Precision",
    "You are using a CUDA device (",
    "Trainer already configured with model summary callbacks",
    "Restoring states from the checkpoint path at ",
    "Restored all states from the checkpoint at ",
    "Loaded model weights from the checkpoint at ",
    "`Trainer.fit` stopped: `max_steps=",
    "`Trainer.fit` stopped: `max_epochs=",
)
#: parts of log lines
TIPS = ("try installing [litlogger]", "try installing [litmodels]")
_RANK = re.compile(r"^\[rank: \d+\] ")


def _is_wanted(record: logging.LogRecord) -> bool:
    text = _RANK.sub("", record.getMessage())
    return not text.startswith(LOG_LINES) and not any(tip in text for tip in TIPS)


def quieten() -> None:
    """Filters these messages, for the rest of the process; processes but the first keep warnings to themselves."""
    for text in WARNINGS:
        warnings.filterwarnings("ignore", message=text)
    warnings.formatwarning = _format_warning
    threading.excepthook = _leave_disk_to_the_main_thread
    if not first_process():
        warnings.simplefilter("ignore")
    rank_zero_module.log.addFilter(_is_wanted)  # a second time changes nothing
    for logger in (logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler):
                logger.removeHandler(handler)
                logger.addHandler(speaker)
    speaker.addFilter(_is_wanted)


#: In the place of Lightning's own handlers, which hold the streams of the moment of its import
speaker = Speaker()


def _leave_disk_to_the_main_thread(args: threading.ExceptHookArgs) -> None:
    # TensorBoard's writer hands the error on to whoever writes or closes next
    if args.exc_value is None or disk_reason(args.exc_value) is None:
        threading.__excepthook__(args)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {message}\n"
