"""What every device is: something that says of ONNX models how long they take, and which of their kernels took how long."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from latency.measuring.fingerprint import Fingerprint
    from latency.measuring.measurement import Measurement
    from latency.measuring.measurement import Protocol as HowOften

Events = list[tuple[tuple[str, ...], float]]
"""Of everything a device ran, in order: the names of the nodes or values it comprises (none for a layout conversion), and
its median milliseconds."""


class Times(NamedTuple):
    """Runs of a model in a row.

    Attributes:
        ms: float64[R], end to end, without profiler, each of one run or the mean of some.
        quiet: bool[R], which of them had the device to themselves, as far as it can tell.
        core_ms: the fastest that a fixed computation was on the same core meanwhile; NaN where a device has none.
    """

    ms: np.ndarray
    quiet: np.ndarray
    core_ms: float = float("nan")


class LoadedModel(Protocol):
    """A model resident on its device, inputs bound."""

    def profile(self, runs: int) -> Events:
        """What ran, and how long. Called once, before `times`."""

    def times(self, runs: int) -> Times:
        """Of at least so many runs."""

    def run(self, times: int) -> None:
        """Run it so often in a row, and wait until all is done."""

    def close(self) -> None:
        """Release everything."""


class Device(ABC):
    """Something that measures ONNX models."""

    name: str
    at_hand = True
    """Whether it can measure."""

    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Everything that must be equal for two measurements to be comparable."""

    @abstractmethod
    def measure_all(self, models: Sequence[bytes], protocol: HowOften | None = None) -> list[Measurement]:
        """Load, profile, time and release `models`, in one session.

        Raises:
            MeasurementError: the device refuses one of them.
        """

    @abstractmethod
    def by_the_wall_ms(self, model: bytes) -> tuple[float, float]:
        """Milliseconds of a run of the same model by two clocks: the device's own, and the wall's.

        Raises:
            MeasurementError: the device refuses it.
        """

    def measure(self, model: bytes) -> Measurement:
        """`measure_all` of one model."""
        return self.measure_all([model])[0]
