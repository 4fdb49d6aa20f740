"""Errors of other libraries that are the user's to mend, as one message; a mistake of ours keeps its traceback."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from clt_lightning.core.errors import UserError

_PACKAGE = Path(__file__).parent.parent
_HERE = Path(__file__).parent

#: What Lightning says, and the key that it is about
_KEYS = ((r"Timer\(duration", "trainer.max_time"), (r"^devices selected", "trainer.devices"))
#: What Lightning says, and what to do
_REMEDIES = (
    (
        r"No supported gpu backend|machine only has|CUDAAccelerator. can not run",
        "--trainer.accelerator=cpu runs on the CPU",
    ),
    (r"enable_checkpointing=False", "leave trainer.enable_checkpointing alone; checkpoints.keep=0 keeps no best one"),
)


@contextmanager
def users_mistakes() -> Iterator[None]:
    """Turns what other libraries say about the user's settings into one message.

    Raises:
        UserError: in the place of an error that was raised outside this package, on the way from a config.
    """
    try:
        yield
    except UserError:
        raise
    except MisconfigurationException as error:
        raise UserError(message(error)) from error
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        if _is_ours(error):
            raise
        raise UserError(message(error)) from error


def message(error: BaseException) -> str:
    """The error's own words, on a line or two, with the remedy where it is known."""
    if (inner := _inner(error)) is not error:
        return message(inner)
    text = str(error) or type(error).__name__
    named = re.search(r"Problem with given class_path '[\w.]*?(\w+)':\n(.*?)\n\s*- Expected", text, re.DOTALL)
    if named:  # jsonargparse lists what each type in a union would have wanted
        text = f"{named[1]}: {named[2].strip()}"
    text = re.sub(r"\s*https?://\S+", "", text)
    text = " ".join(line.strip() for line in text.splitlines() if line.strip()).replace("`", "")
    text = text if len(text) <= 500 else f"{text[:497]}..."
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, str(error)):
            text = f"{text.rstrip('.')}: {remedy}"
    return next((f"{key}: {text}" for pattern, key in _KEYS if re.search(pattern, str(error))), text)


def _inner(error: BaseException) -> BaseException:
    """The error that a chain of re-raised ones began with, where that is the telling one."""
    cause = error.__cause__ or error.__context__
    return cause if isinstance(cause, MisconfigurationException | ModuleNotFoundError | UserError) else error


def is_users(error: BaseException) -> bool:
    """Whether Lightning, or one of its callbacks and loggers, says that the user's settings do not fit."""
    last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    of_part = {"callbacks", "loggers"} & set(last.parts) and "lightning" in last.parts
    return isinstance(error, MisconfigurationException) or bool(of_part)


def _is_ours(error: BaseException) -> bool:
    """Whether code of this package had a part in it, beyond the call of the parser and the Trainer."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    ours = any(file.is_relative_to(_PACKAGE) and not file.is_relative_to(_HERE) for file in files)
    return ours or files[-1].is_relative_to(_HERE) or files[-1].name == "cli.py"
