"""The processors that this thread may run on, and going from one to the next. Where a system does not say, it stays."""

from __future__ import annotations

import os
from pathlib import Path

NODES = Path("/sys/devices/system/node")
THREAD = Path("/proc/thread-self/stat")

_PROCESSOR = 36
"""Of the entries after the thread's name."""


def move_on() -> bool:
    """Take this thread to the next processor that it may use and that shares memory with its own; whether there is one.

    It is not bound to it: the system leaves a thread where it runs as long as nothing else wants to.
    """
    try:
        allowed, here = os.sched_getaffinity(0), _running_on()
    except (AttributeError, OSError):  # systems other than Linux have no such function, some sandboxes no such file
        return False
    near = sorted(allowed & _same_node(here))
    if len(near) < 2:
        return False
    os.sched_setaffinity(0, {next((one for one in near if one > here), near[0])})
    os.sched_setaffinity(0, allowed)
    return True


def _running_on() -> int:
    return int(THREAD.read_text().rpartition(")")[2].split()[_PROCESSOR])


def _same_node(processor: int) -> set[int]:
    """Those whose memory is as near; only itself where the system does not say."""
    nodes = (_parsed(file.read_text()) for file in NODES.glob("node*/cpulist"))
    return next((node for node in nodes if processor in node), {processor})


def _parsed(ranges: str) -> set[int]:
    """{0, 1, 2, 3, 8} of "0-3,8"."""
    bounds = [one.split("-") for one in ranges.strip().split(",") if one]
    return {processor for bound in bounds for processor in range(int(bound[0]), int(bound[-1]) + 1)}
