"""Measurements kept in a file as they are made: a command that needs many, and is interrupted, goes on with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from latency.errors import TableError
from latency.files import write_whole
from latency.measuring.device import Device
from latency.measuring.fingerprint import slug
from latency.measuring.measurement import Protocol
from latency.measuring.speed import at_speed


class Timed(NamedTuple):
    """What is kept of a measurement."""

    latency_ms: float
    stable: bool
    core_ms: float

    def at_speed(self, core_ms: float) -> float:
        """Milliseconds at that speed of the core."""
        return float(at_speed(self.latency_ms, self.core_ms, core_ms))


class KeptMeasurements:
    """Measures models on a device, or finds in the file what was measured before.

    Args:
        file: keeps all of it, by what callers name it; None keeps nothing.

    Raises:
        TableError: the file is not what this class writes.
    """

    def __init__(self, device: Device, file: Path | None = None) -> None:
        self.device, self._file = device, file
        self._known = _read(file) if file is not None and file.exists() else {}

    def measured(self, what: str, models: Sequence[bytes], protocol: Protocol | None = None) -> list[Timed]:
        """Those of `models`, measured in one session. `what` names them; their weights may differ from time to time.

        Raises:
            MeasurementError: the device refuses one of them.
            TableError: the file cannot be written.
        """
        key = f"{slug(self.device.fingerprint())}: {what}"
        if key not in self._known:
            self._known[key] = [
                Timed(one.latency_ms, one.stable, one.core_ms) for one in self.device.measure_all(models, protocol)
            ]
            if self._file is not None:
                self._write(self._file)
        return self._known[key]

    def _write(self, file: Path) -> None:
        try:
            write_whole(file, json.dumps(self._known).encode())
        except OSError as error:
            raise TableError(f"cannot write '{file}': {error.strerror}. Choose another place for the results.") from error

    def discard(self) -> None:
        """Remove the file: what it was kept for is finished."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, list[Timed]]:
    try:
        known = json.loads(file.read_text()).items()
        return {what: [Timed(float(ms), bool(stable), float(core)) for ms, stable, core in timed] for what, timed in known}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TableError(f"'{file}' cannot be read ({error}); remove it, and all is measured again.") from error
