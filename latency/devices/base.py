"""What every device is: something that loads an ONNX model, times it and says which kernels took how long."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from latency.fingerprint import Fingerprint, GpuState
    from latency.measurement import Measurement

Events = list[tuple[tuple[str, ...], float]]
"""Of everything a device ran, in order: the names of the nodes or values it comprises (none for a layout conversion), and
its median milliseconds."""


class LoadedModel(Protocol):
    """A model resident on its device, inputs bound."""

    def profile(self, runs: int) -> Events:
        """What ran, and how long. Called once, before `time_ms`."""

    def time_ms(self, runs: int) -> tuple[np.ndarray, np.ndarray]:
        """End-to-end milliseconds of a run, without profiler, over at least so many: float64[R], each of one run or the mean of
        some; and bool[R], which of them had the device to themselves, as far as it can tell."""

    def run(self, times: int) -> None:
        """Run it so often in a row, and wait until all is done."""

    def close(self) -> None:
        """Release everything."""


class Device(ABC):
    """Something that measures ONNX models."""

    name: str
    at_hand = True
    """Whether it can measure."""
    max_spread = 0.03
    """How far rounds may lie above the latency, relative to it, and agree with it."""

    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Everything that must be equal for two measurements to be comparable."""

    @abstractmethod
    def load(self, model: bytes) -> LoadedModel:
        """Raises MeasurementError when the device refuses the model."""

    def observed(self) -> GpuState | None:
        """State of the GPU over all that was timed since the last call; None where there is none."""
        return None

    def measure(self, model: bytes) -> Measurement:
        """Load, profile, time and release one model.

        Raises:
            MeasurementError: the device refuses it.
        """
        from latency.protocol import measure

        return measure(self, [model])[0]
