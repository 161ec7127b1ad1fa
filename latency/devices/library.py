"""What devices share whose library runs on the CPU as well as on a GPU."""

from __future__ import annotations

import platform
from collections.abc import Callable

from latency.devices.clock import GPU_SPREAD, CpuClock, GpuClock
from latency.devices.core import CoreMonitor
from latency.devices.cuda import Card, require_gpu
from latency.devices.local import LocalDevice
from latency.devices.nvml import GpuMonitor
from latency.graph.precision import require_precision
from latency.measuring.fingerprint import Fingerprint, GpuState, processor


class LibraryDevice(LocalDevice):
    """A library on this CPU, or on the first GPU that CUDA shows where the device's name says "cuda".

    Args:
        runtime: name and version of the library.
        on_cpu: precisions that it computes in there.
    """

    def __init__(self, name: str, threads: int, precision: str, runtime: str, on_cpu: tuple[str, ...] = ("fp32",)) -> None:
        self.name, self.threads, self.precision, self.runtime = name, threads, precision, runtime
        self.on_gpu = "cuda" in name
        require_precision(precision, ("fp32", "tf32", "fp16") if self.on_gpu else on_cpu, name)
        self.core = CoreMonitor(movable=threads == 1)
        if self.on_gpu:
            require_gpu(name)
            self.card = Card.first()
            self.monitor = GpuMonitor(self.card.pci_bus_id)
            self.max_spread = GPU_SPREAD

    def clock(self, run: Callable[[], object], elapsed_ms: Callable[[int], float]) -> CpuClock | GpuClock:
        """What times a model here: `run` it once on the CPU, or see how long its replays take on the GPU."""
        return GpuClock(elapsed_ms, self.monitor) if self.on_gpu else CpuClock(run, self.core)

    def fingerprint(self) -> Fingerprint:
        return {
            "device": self.name,
            **(self.card.fingerprint() if self.on_gpu else {"processor": processor()}),
            "system": f"{platform.system()} {platform.machine()}",
            "runtime": self.runtime,
            "threads": str(self.threads),
            "precision": self.precision,
        }

    def observed(self) -> GpuState | None:
        return self.monitor.observed() if self.on_gpu else None
