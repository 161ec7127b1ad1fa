"""What runs on another host to measure there: opens the device and answers `remote.RemoteDevice` over a channel.

Its code comes from the asking host, so both are of one version. Beyond Python it needs numpy, scipy, pandas, onnx and what the
device itself needs, but no PyTorch. Plain data alone goes over the channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from latency.devices import Device, open_device
from latency.errors import MeasurementError, MillipruneError
from latency.measuring.fingerprint import Conditions, GpuState
from latency.measuring.measurement import Measurement, Protocol

if TYPE_CHECKING:
    from execnet import Channel

KEPT = Path(".cache") / "milliprune"
"""Folder in the home directory for what makes a device's next session quicker."""

DONE, REFUSED, UNAVAILABLE = "done", "refused", "unavailable"
"""Kinds of answers: with a result, or with the text of a MeasurementError, or of any other of our errors."""


def serve(channel: Channel, name: str, threads: int, precision: str) -> None:
    """Answer requests (task, number of models, *arguments), which the models follow, with (kind, content), until the channel is
    closed."""
    device: Device | None = None
    for task, count, *arguments in channel:
        models = [channel.receive() for _ in range(count)]
        try:
            device = device or open_device(name, threads=threads, precision=precision, lut=Path.home() / KEPT)
            channel.send((DONE, TASKS[task](device, models, *arguments)))
        except MeasurementError as error:
            channel.send((REFUSED, str(error)))
        except MillipruneError as error:
            channel.send((UNAVAILABLE, str(error)))


def _measured(device: Device, models: list[bytes], protocol: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [packed(one) for one in device.measure_all(models, Protocol(**protocol) if protocol else None)]


TASKS: dict[str, Callable[..., object]] = {
    "fingerprint": lambda device, models: device.fingerprint(),
    "measure_all": _measured,
    "by_the_wall_ms": lambda device, models: device.by_the_wall_ms(*models),
}
"""What can be asked for, with the names of `Device`'s methods."""


def packed(measured: Measurement) -> dict[str, Any]:
    """A measurement as plain data."""
    return {
        "latency_ms": float(measured.latency_ms),
        "core_ms": float(measured.core_ms),
        "kernels": measured.kernels.to_dict("list"),
        "rounds_ms": measured.rounds_ms.tolist(),
        "rounds_core_ms": measured.rounds_core_ms.tolist(),
        "stable": bool(measured.stable),
        "conditions": asdict(measured.conditions),
    }


def unpacked(plain: dict[str, Any]) -> Measurement:
    """The inverse of `packed`."""
    gpu = plain["conditions"]["gpu"]
    return Measurement(
        plain["latency_ms"],
        plain["core_ms"],
        pd.DataFrame(plain["kernels"]),
        np.array(plain["rounds_ms"]),
        np.array(plain["rounds_core_ms"]),
        plain["stable"],
        Conditions(**plain["conditions"] | {"gpu": gpu and GpuState(**gpu)}),
    )
