"""What an NVIDIA GPU says of itself while it works: clock, temperature, and whether something slows it down. Read only."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from latency.measuring.fingerprint import GpuState

try:
    import pynvml
except ImportError:  # without it nothing is known of the card's state; measuring goes on
    pynvml = None

SLOWED = ("HwSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "SwThermalSlowdown", "SwPowerCap")
"""Reasons for lower clocks that disturb a measurement; idling and clocks that somebody has set do not."""


class GpuMonitor:
    """Samples the state of the card at a PCI address; `observed` tells what it saw. Jetsons and old drivers say nothing."""

    def __init__(self, pci_bus_id: str) -> None:
        self.busy_until = float("-inf")
        """When the card was last seen at work, by time.monotonic()."""
        self._handle: Any = None
        self._clocks: list[int] = []
        self._temperatures: list[int] = []
        self._reasons: set[str] = set()
        if pynvml is None:
            _warn("install nvidia-ml-py")
            return
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        except pynvml.NVMLError as error:
            _warn(f"NVML says: {error}")

    def undisturbed(self) -> bool:
        """Take a sample; False where the card is being slowed down."""
        if self._handle is None:
            return True
        try:
            self._clocks.append(pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM))
            self._temperatures.append(pynvml.nvmlDeviceGetTemperature(self._handle, pynvml.NVML_TEMPERATURE_GPU))
            mask = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
        except pynvml.NVMLError_NotSupported:  # some cards do not tell
            return True
        except pynvml.NVMLError as error:  # a lost card says so a thousand times
            self._handle = None
            _warn(f"NVML says: {error}")
            return True
        reasons = slowing_reasons(mask)
        self._reasons |= reasons
        return not reasons

    def observed(self) -> GpuState:
        """State over all samples since the last call."""
        state = GpuState(
            clock_mhz=float(np.median(self._clocks)) if self._clocks else None,
            temperature_c=float(max(self._temperatures)) if self._temperatures else None,
            throttled=", ".join(sorted(self._reasons)),
        )
        self._clocks, self._temperatures, self._reasons = [], [], set()
        return state


def _warn(why: str) -> None:
    warnings.warn(f"clock and temperature of the GPU are not recorded, and slowed samples are not noticed: {why}", stacklevel=3)


def slowing_reasons(mask: int) -> set[str]:
    """Names of SLOWED whose bit is set in NVML's mask of reasons."""
    return {name for name in SLOWED if mask & int(getattr(pynvml, f"nvmlClocksThrottleReason{name}"))}
