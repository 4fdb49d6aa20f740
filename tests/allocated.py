"""What some work takes of memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes of tensors that some work holds at once, by torch's own account."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    found = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    found.sort(key=lambda event: event.start_ns())
    return int(max(accumulate(event.nbytes() for event in found)))
