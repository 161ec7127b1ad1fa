"""What a machine is, and in what condition it was during a measurement.

The fingerprint decides which rows may stand in one table: every entry must be equal. Conditions are only recorded.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from latency.errors import TableError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Fingerprint = dict[str, str]


def processor() -> str:
    """Name, model numbers and widest vector extension of the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()

    def entry(key: str) -> str:
        match = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
        return match.group(1).strip() if match else ""

    name = entry("model name") or entry("Hardware") or entry("CPU part") or platform.machine()
    numbers = "/".join(filter(None, (entry("cpu family"), entry("model"), entry("stepping"))))
    flags = (entry("flags") or entry("Features")).split()
    vector = next((flag for flag in ("avx512f", "avx2", "avx", "sve", "asimd", "neon") if flag in flags), "")
    return " ".join(filter(None, (name, numbers, vector)))


def slug(fingerprint: Mapping[str, str]) -> str:
    """A folder name: readable front, eight hex digits of all entries."""
    digest = hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()[:8]
    front = "-".join(fingerprint[key] for key in ("device", "precision") if key in fingerprint)
    threads = f"{fingerprint['threads']}t-" if "threads" in fingerprint else ""
    return f"{front}-{threads}{digest}"


def difference(found: Mapping[str, str], expected: Mapping[str, str]) -> str | None:
    """The first entry in which two fingerprints differ, and both values, in words."""
    for key in sorted(set(found) | set(expected)):
        if found.get(key) != expected.get(key):
            return f"with {key} '{found.get(key, 'not stated')}', this is '{expected.get(key, 'not stated')}'"
    return None


def require_same(found: Mapping[str, str], expected: Mapping[str, str], where: str) -> None:
    """Raise TableError naming the first entry in which two fingerprints differ, and both values."""
    differs = difference(found, expected)
    if differs:
        raise TableError(
            f"{where} was measured {differs}. Rows of different devices never mix; choose another folder or remove that table."
        )


@dataclass(frozen=True)
class GpuState:
    """What a GPU said of itself during a measurement; None where it says nothing."""

    clock_mhz: float | None  # median
    temperature_c: float | None  # highest
    throttled: str  # every reason for lower clocks that was seen, or nothing


@dataclass(frozen=True)
class Conditions:
    """State of the machine around one measurement."""

    load: float  # one-minute load average
    steal: float  # share of CPU time taken by the hypervisor since `before`
    gpu: GpuState | None = None


def preemptions() -> int:
    """How often the system has taken the CPU from this process so far; 0 where it does not say."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def cpu_times() -> tuple[float, float]:
    """(stolen, total) CPU time so far, in ticks; zeros where the system does not say."""
    try:
        ticks = [float(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return 0.0, 0.0
    return (ticks[7] if len(ticks) > 7 else 0.0), sum(ticks[:8])


def conditions_since(before: tuple[float, float], gpu: GpuState | None) -> Conditions:
    """Conditions between an earlier `cpu_times()` and now, with what the GPU said meanwhile."""
    stolen, total = cpu_times()
    elapsed = total - before[1]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return Conditions(load, (stolen - before[0]) / elapsed if elapsed > 0 else 0.0, gpu)
