"""A device of another host, measured from here over ssh: the models go there, with our code, and the measurements come back."""

from __future__ import annotations

import contextlib
import io
import weakref
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import execnet

from latency.devices.worker import DONE, REFUSED, unpacked
from latency.errors import DeviceUnavailable, MeasurementError
from latency.measuring.device import Device
from latency.measuring.fingerprint import Fingerprint

if TYPE_CHECKING:
    from latency.measuring.measurement import Measurement, Protocol

NEEDED = "numpy scipy pandas onnx"
"""Packages without which nothing can be measured there, besides what the device itself needs."""

START = """
import sys, tempfile
archive = tempfile.NamedTemporaryFile(suffix=".zip")
code, *options = channel.receive()
archive.write(code)
archive.flush()
sys.path.insert(0, archive.name)
from latency.devices.worker import serve
serve(channel, *options)
"""
"""Runs there, given this package as an archive and what `serve` takes."""


class RemoteDevice(Device):
    """The device `name` where `place` says: "HOST" or "HOST:PYTHON", a host that ssh reaches without a password, and the Python
    there (default: python3); without HOST another Python of this machine.

    Raises:
        DeviceUnavailable: it cannot be reached, or the device cannot be opened there.
    """

    def __init__(self, name: str, place: str, threads: int, precision: str) -> None:
        self.name, self._where = name, f"{name}@{place}"
        host, _, python = place.partition(":")
        python = python or "python3"
        spec, command = (f"ssh={host}", f"ssh {host} {python} -V") if host else ("popen", f"{python} -V")
        try:
            gateway = execnet.makegateway(f"{spec}//python={python}")
            weakref.finalize(self, gateway.exit)
            self._channel = gateway.remote_exec(START)
            self._channel.send((_package(), name, threads, precision))
        except (OSError, EOFError, execnet.HostNotFound) as error:
            raise DeviceUnavailable(
                f"device '{self._where}': no Python answers there ({error}); expected DEVICE@HOST or DEVICE@HOST:PYTHON, where "
                f"`{command}` works without a question."
            ) from error
        self._fingerprint: Fingerprint = self._asked("fingerprint")

    def fingerprint(self) -> Fingerprint:
        return self._fingerprint

    def measure_all(self, models: Sequence[bytes], protocol: Protocol | None = None) -> list[Measurement]:
        return [unpacked(one) for one in self._asked("measure_all", models, protocol and asdict(protocol))]

    def by_the_wall_ms(self, model: bytes) -> tuple[float, float]:
        own, wall = self._asked("by_the_wall_ms", [model])
        return own, wall

    def _asked(self, task: str, models: Sequence[bytes] = (), *arguments: object) -> Any:
        """The result of one of `worker.TASKS`. Every model is a message of its own: none may be longer than 2 GB."""
        with contextlib.suppress(OSError):  # of a channel that is closed: receiving says why
            for message in ((task, len(models), *arguments), *models):
                self._channel.send(message)
        try:
            kind, content = self._channel.receive()
        except execnet.RemoteError as error:
            reason = error.formatted.strip().splitlines()[-1]
            raise DeviceUnavailable(
                f"device '{self._where}': {reason}; expected Python 3.11 or newer there, with {NEEDED} and what the device "
                "itself needs."
            ) from error
        except EOFError as error:
            raise DeviceUnavailable(
                f"device '{self._where}' answers no more; see to the connection, then run the same command again: what has "
                "been measured is kept."
            ) from error
        if kind != DONE:
            raise (MeasurementError if kind == REFUSED else DeviceUnavailable)(f"{self._where}: {content}")
        return content


def _package() -> bytes:
    """This package as an archive that Python imports from."""
    home = Path(__file__).parents[1]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(home.rglob("*.py")):
            archive.write(file, file.relative_to(home.parent))
    return content.getvalue()
