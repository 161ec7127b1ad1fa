"""Devices: things that load an ONNX model, time it and say which kernels took how long.

Backends import their libraries only when opened. Every one passes the contract suite in tests/latency/devices/test_devices.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from latency.errors import DeviceUnavailable
from latency.measuring.device import Device, Events, LoadedModel, Times

__all__ = ["DEVICES", "Device", "Events", "LoadedModel", "Times", "open_device"]

DEVICES = {
    "ort": "ort:OrtDevice",
    "ort-cuda": "ort:OrtDevice",
    "torch": "pytorch:TorchDevice",
    "torch-compiled": "pytorch:TorchDevice",
    "torch-cuda": "pytorch:TorchDevice",
    "torch-cuda-compiled": "pytorch:TorchDevice",
    "trt": "trt:TensorRTDevice",
}
"""Name → module in this package and class in it, which is given the name."""

UNSAID = {"threads": "1", "precision": "fp32"}
"""Of a device that is known by its table, what nobody need have asked for."""


def open_device(name: str, *, threads: int = 1, precision: str = "fp32", lut: Path | None = None) -> Device:
    """Open the device called `name`.

    Args:
        name: "ort" (ONNX Runtime on this CPU), "torch" (PyTorch on this CPU), "trt" (TensorRT on an NVIDIA GPU), "ort-cuda",
            "torch-cuda" (the same libraries there); "torch-compiled" and "torch-cuda-compiled" compile the model first.
            "trt@HOST" measures on another host, over ssh (see `remote.RemoteDevice`). Or the name of a folder in `lut`, for the
            device that measured that table elsewhere.
        threads: CPU threads that compute.
        precision: "fp32", or what else the device offers: tf32, fp16, int8.
        lut: folder of latency tables, beside which the device may keep what makes its next session quicker.

    Raises:
        DeviceUnavailable: unknown name, or something is missing: says what to install.
    """
    kind, at, place = name.partition("@")
    if kind in DEVICES and at:
        from latency.devices.remote import RemoteDevice

        return RemoteDevice(kind, place, threads, precision)
    if name not in DEVICES:
        return _elsewhere(name, lut, {"threads": str(threads), "precision": precision})
    if not 1 <= threads <= _processors():
        raise DeviceUnavailable(f"threads={threads} given; expected 1 to {_processors()}, the processors of this machine.")
    module, _, backend = DEVICES[name].partition(":")
    opened = getattr(import_module(f"latency.devices.{module}"), backend)
    device: Device = opened(name=name, threads=threads, precision=precision, lut=lut)
    return device


def _elsewhere(name: str, lut: Path | None, wanted: Mapping[str, str]) -> Device:
    """The device of the table in `lut` that has this name; what differs from UNSAID must be what it was measured with."""
    if lut is None or not (lut / name).is_dir():
        raise DeviceUnavailable(
            f"device '{name}' is unknown; expected one of: {', '.join(DEVICES)}; one of them on another host, such as "
            "trt@HOST; or the name of a table's folder, for a device elsewhere."
        )
    from latency.devices.recorded import RecordedDevice

    device = RecordedDevice(lut / name)
    measured = device.fingerprint()
    for what, given in wanted.items():
        if given not in (UNSAID[what], measured.get(what, given)):
            raise DeviceUnavailable(f"{what}={given} given; the table at '{lut / name}' was measured with {measured[what]}.")
    return device


def _processors() -> int:
    """Those that this process may use; threads beyond them only wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
