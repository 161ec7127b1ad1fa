"""Memory, streams, events and graphs of an NVIDIA GPU through PyCUDA: a measuring host needs no torch.

Everything lives in the device's primary context, which other libraries in the process share. PyCUDA has no CUDA graphs,
so those few calls go to the driver itself.
"""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from latency.errors import DeviceUnavailable, MeasurementError
from latency.measuring.fingerprint import Fingerprint

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""

THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does no harm."""


def require_gpu(device: str) -> None:
    """Raise DeviceUnavailable where the driver is missing or shows no GPU."""
    try:
        count = ctypes.c_int(0)
        _call("cuInit", 0)
        _call("cuDeviceGetCount", ctypes.byref(count))
        found = f"{count.value} devices"
    except OSError:
        found = "libcuda is not installed"
    except MeasurementError as error:
        found = str(error)
    else:
        if count.value > 0:
            return
    raise DeviceUnavailable(
        f"device '{device}' needs an NVIDIA GPU with its driver, and this machine shows none ({found}); "
        "install the driver, or measure this CPU with --device ort."
    )


@dataclass(frozen=True)
class Card:
    """The first GPU that CUDA shows."""

    name: str
    capability: tuple[int, int]  # major, minor
    pci_bus_id: str
    cuda_version: str  # the newest that the driver knows

    @classmethod
    def first(cls) -> Card:
        """Asked of the driver, without a context. Raises MeasurementError."""
        text, major, minor, version = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        _call("cuDeviceGetName", text, len(text), 0)
        name = text.value.decode()
        _call("cuDeviceGetAttribute", ctypes.byref(major), CAPABILITY_MAJOR, 0)
        _call("cuDeviceGetAttribute", ctypes.byref(minor), CAPABILITY_MINOR, 0)
        _call("cuDeviceGetPCIBusId", text, len(text), 0)
        _call("cuDriverGetVersion", ctypes.byref(version))
        cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return cls(name, (major.value, minor.value), text.value.decode(), cuda_version)

    def fingerprint(self) -> Fingerprint:
        """What of it decides how fast it is."""
        return {"gpu": self.name, "compute capability": ".".join(map(str, self.capability)), "driver": self.cuda_version}


def _call(function: str, *arguments: Any) -> None:
    """One function of the driver. Raises OSError without driver, MeasurementError for any status but success."""
    status = getattr(_cuda(), function)(*arguments)
    if status != 0:
        raise MeasurementError(f"the CUDA driver's {function} failed with status {status}.")


@cache
def _cuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


class Gpu:
    """The first GPU that CUDA shows, by its primary context; kept until the process ends."""

    def __init__(self) -> None:
        try:
            import pycuda.driver as driver
        except ImportError as error:
            raise DeviceUnavailable(f"device 'trt' needs PyCUDA ({error}); install with: pip install pycuda") from error
        driver.init()
        self.driver: Any = driver
        device = driver.Device(0)
        self._context = device.retain_primary_context()
        atexit.register(self._context.detach)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the context current for what is done inside. Raises MeasurementError for PyCUDA's errors, out of memory say."""
        self._context.push()
        try:
            yield
        except self.driver.Error as error:
            raise MeasurementError(f"the GPU refuses: {error}") from error
        finally:
            self.driver.Context.pop()

    def resident(self, content: np.ndarray) -> Any:
        """A copy of `content` in the GPU's memory; its address is int(…)."""
        memory = self.driver.mem_alloc(max(1, content.nbytes))
        self.driver.memcpy_htod(memory, np.ascontiguousarray(content))
        return memory

    def elapsed_ms(self, stream: Any, launch: Callable[[], object], launches: int) -> float:
        """Milliseconds of one launch by the GPU's own clock, averaged over some in a row."""
        start, end = self.driver.Event(), self.driver.Event()
        start.record(stream)
        for _ in range(launches):
            launch()
        end.record(stream)
        end.synchronize()
        return float(end.time_since(start)) / launches


class Graph:
    """A CUDA graph on one stream, by the driver's interface.

    Raises:
        MeasurementError: the driver refuses, say because something on the stream cannot be captured.
    """

    def __init__(self, stream: Any, enqueue: Callable[[], object]) -> None:
        self._stream = ctypes.c_void_p(stream.handle)
        recorded, self._executable = ctypes.c_void_p(), ctypes.c_void_p()
        _call("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(THREAD_LOCAL))
        try:
            enqueue()
        finally:
            _call("cuStreamEndCapture", self._stream, ctypes.byref(recorded))
        _call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), recorded, ctypes.c_ulonglong(0))
        _call("cuGraphDestroy", recorded)

    def launch(self) -> None:
        """Put one replay on the stream."""
        _call("cuGraphLaunch", self._executable, self._stream)

    def close(self) -> None:
        """Release it."""
        _call("cuGraphExecDestroy", self._executable)
