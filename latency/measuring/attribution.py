"""Which of a model's kernels took how long, from what a profiler says of nodes and values.

A profiler slows what it watches, so its times are used as shares of the unprofiled end-to-end time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pandas as pd

from latency.errors import MeasurementError
from latency.graph.kernels import KERNEL_FIELDS, Kernel, PlacedKernel, find_kernels
from latency.graph.work import Kernels
from latency.measuring.device import Events

MACS_A_VALUE = 16
"""Multiply-adds that cost as much as moving one value, in what a runtime fused beyond our kernels. End-to-end times correct
what this gets wrong."""


def profiled_kernels(model: bytes, events: Events) -> pd.DataFrame:
    """The kernels of `model`, KERNEL_FIELDS, with the profiler's ms.

    Raises:
        MeasurementError: the profiler reported none of them.
    """
    placed = find_kernels(onnx.load_from_string(model))
    milliseconds = _attributed(placed, events)
    return pd.DataFrame([one.kernel for one in placed], columns=list(KERNEL_FIELDS)).assign(ms=milliseconds)


def _attributed(placed: Sequence[PlacedKernel], events: Events) -> np.ndarray:
    """Sum profiler events into kernels by name.

    An event without names converts the layout of what the next kernel reads. Between two kernels that know blocked layouts,
    widths decide: the producer's own channels how it left it, its output's channels how it is wanted; so it belongs to the
    producer. Otherwise it belongs to the one that does not know them. Names that the model does not have come from an
    operation the runtime expanded (HardSwish, say), or convert what flows between precisions: they belong to the kernel just
    run, before any to the first. What runs several kernels as one is shared out among them by their work.
    """
    producer = {one.output: index for index, one in enumerate(placed)}
    owner = {name: index for index, one in enumerate(placed) for name in one.names}
    milliseconds = np.zeros(len(placed))
    waiting = 0.0
    last: list[int] = []
    for names, ms in events:
        last = sorted({owner[name] for name in names if name in owner}) or last
        if not names or not last:
            waiting += ms
            continue
        milliseconds[last] += ms * _shares([placed[index].kernel for index in last])
        first = last[0]
        milliseconds[producer.get(placed[first].input, first) if placed[first].blocked else first] += waiting
        waiting = 0.0
    if not last:
        raise MeasurementError("the device's profiler reported no kernel of this model.")
    milliseconds[last[-1]] += waiting
    return milliseconds


def _shares(kernels: Sequence[Kernel]) -> np.ndarray:
    """Share of each kernel in their work: values read and written, and multiply-adds at `MACS_A_VALUE` of them."""
    if len(kernels) == 1:
        return np.ones(1)
    terms = Kernels.of(pd.DataFrame(kernels, columns=list(KERNEL_FIELDS))).terms()
    work = terms[:, 1] / MACS_A_VALUE + terms[:, 2] + terms[:, 3]
    return work / work.sum()
