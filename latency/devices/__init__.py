"""Devices: things that load an ONNX model, time it and say which kernels took how long.

Backends import their libraries only when opened. Every one passes the contract suite in tests/latency/test_devices.py.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from latency.errors import DeviceUnavailable

if TYPE_CHECKING:
    import numpy as np

    from latency.fingerprint import Fingerprint
    from latency.measurement import Measurement


class LoadedModel(Protocol):
    """A model resident on its device, inputs bound."""

    def profile(self, runs: int) -> list[tuple[str | None, float]]:
        """(node or value name, median ms) of everything the device ran, in order; None names a layout conversion.

        Called once, before `time_ms`.
        """

    def time_ms(self, runs: int) -> tuple[np.ndarray, np.ndarray]:
        """End-to-end milliseconds of single runs, without profiler: float64[runs]; and bool[runs], which of them had the
        device to themselves, as far as it can tell."""

    def close(self) -> None:
        """Release everything."""


class Device(Protocol):
    """Something that measures ONNX models."""

    name: str

    def fingerprint(self) -> Fingerprint:
        """Everything that must be equal for two measurements to be comparable."""

    def load(self, model: bytes) -> LoadedModel:
        """Raises MeasurementError when the device refuses the model."""

    def measure(self, model: bytes) -> Measurement:
        """Load, profile, time and release one model."""


DEVICES = {"ort": "OrtDevice", "trt": "TensorRTDevice"}
"""Name → class, which lives in the module of the same name in this package."""


def open_device(name: str, *, threads: int = 1, precision: str = "fp32") -> Device:
    """Open the device called `name`.

    Args:
        name: "ort" (ONNX Runtime on this CPU) or "trt" (TensorRT on an NVIDIA GPU).
        threads: CPU threads that compute.
        precision: "fp32", or what else the device offers.

    Raises:
        DeviceUnavailable: unknown name, or something is missing: says what to install.
    """
    if name not in DEVICES:
        raise DeviceUnavailable(f"device '{name}' is unknown; expected one of: {', '.join(DEVICES)}.")
    if threads < 1:
        raise DeviceUnavailable(f"threads={threads} given; expected 1 or more.")
    backend = getattr(import_module(f"latency.devices.{name}"), DEVICES[name])
    device: Device = backend(threads=threads, precision=precision)
    return device
