"""TensorRT on an NVIDIA GPU. Today it only says what is missing; measuring with it is a work of its own."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec

from latency.errors import DeviceUnavailable


class TensorRTDevice:
    """Raises DeviceUnavailable on opening: names the first thing that is missing, in the order one installs them."""

    name = "trt"

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        if not _has_gpu():
            raise DeviceUnavailable(
                "device 'trt' needs an NVIDIA GPU with its driver, and this machine shows none (libcuda finds no device); "
                "install the driver, or measure this CPU with --device ort."
            )
        missing = [package for package in ("tensorrt", "pycuda") if find_spec(package) is None]
        if missing:
            raise DeviceUnavailable(
                f"device 'trt' needs {' and '.join(missing)}; install with: pip install {' '.join(missing)}"
            )
        raise DeviceUnavailable("device 'trt' cannot measure yet in this version of Milliprune; use --device ort.")


def _has_gpu() -> bool:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
