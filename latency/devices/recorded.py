"""A device that is elsewhere, known by its table: networks can be searched for it where it is not, on a GPU server, say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from latency.errors import DeviceUnavailable, TableError
from latency.measuring.device import Device
from latency.measuring.fingerprint import Fingerprint, slug
from latency.measuring.table import LatencyTable


class RecordedDevice(Device):
    """The device that measured the table in `folder`. It cannot measure.

    Raises:
        TableError: no table there, one that cannot be read, or one of another name.
    """

    at_hand = False

    def __init__(self, folder: Path) -> None:
        self.name, self._fingerprint = folder.name, LatencyTable.read(folder).fingerprint
        if self.name != slug(self._fingerprint):
            raise TableError(f"'{folder}' holds the table of '{slug(self._fingerprint)}'; give the folder that name.")

    def fingerprint(self) -> Fingerprint:
        return self._fingerprint

    def measure_all(self, models: Sequence[bytes], protocol: object = None) -> NoReturn:
        raise DeviceUnavailable(
            f"'{self.name}' is known by its table only, and nothing can be measured on it here; measure where it is, with "
            f"--device {self._fingerprint['device']}, and bring its whole folder; or from here over ssh, with "
            f"--device {self._fingerprint['device']}@HOST."
        )

    def by_the_wall_ms(self, model: bytes) -> NoReturn:
        self.measure_all([model])
