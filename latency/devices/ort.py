"""ONNX Runtime, on the CPU of this machine or on an NVIDIA GPU."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from latency.devices.clock import mean_of_quiet
from latency.devices.library import LibraryDevice
from latency.errors import DeviceUnavailable, MeasurementError
from latency.graph.precision import lowered
from latency.measuring.device import Events, Times

try:
    import onnxruntime
except ImportError as error:
    raise DeviceUnavailable(
        "devices 'ort' and 'ort-cuda' need ONNX Runtime; install it with: pip install onnxruntime"
    ) from error

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class OrtDevice(LibraryDevice):
    """ONNX Runtime with all graph optimisations: "ort" on the CPU, "ort-cuda" on the first GPU as a CUDA graph.

    On a GPU the profiler sees when the host has launched a kernel, not when it ends; launches are therefore made to wait
    (CUDA_LAUNCH_BLOCKING), which a graph, launched as one, does not notice. Open the device before CUDA is used otherwise.
    """

    def __init__(self, name: str = "ort", threads: int = 1, precision: str = "fp32", lut: Path | None = None) -> None:
        if name == "ort-cuda":
            os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
        super().__init__(name, threads, precision, f"onnxruntime {onnxruntime.__version__}", on_cpu=("fp32", "int8"))
        if self.on_gpu:
            _require_provider(name)

    def load(self, model: bytes) -> OrtModel:
        return OrtModel(self._in_precision(model), self)

    def _in_precision(self, model: bytes) -> bytes:
        if self.precision != "int8":
            return lowered(model, self.precision)
        from latency.devices.ort_int8 import quantized

        try:
            return quantized(model)
        except Exception as error:  # of protobuf, onnx or onnxruntime
            raise MeasurementError(f"ONNX Runtime cannot quantize the model: {str(error).splitlines()[0]}") from error


def _require_provider(name: str) -> None:
    """Raise DeviceUnavailable where the provider for CUDA is not built in, or where it does not start: sessions then quietly
    fall back to the CPU."""
    if CUDA not in onnxruntime.get_available_providers():
        raise DeviceUnavailable(
            f"device '{name}' needs an ONNX Runtime with {CUDA}; replace the one installed: pip uninstall onnxruntime, then "
            "pip install onnxruntime-gpu"
        )
    onnxruntime.preload_dlls()  # CUDA's and cuDNN's libraries, where they lie in Python packages
    if CUDA not in onnxruntime.InferenceSession(_nothing(), providers=[CUDA]).get_providers():
        raise DeviceUnavailable(
            f"device '{name}': {CUDA} of ONNX Runtime {onnxruntime.__version__} does not start; install the CUDA and cuDNN "
            "that it was built for: pip install onnxruntime-gpu[cuda,cudnn]"
        )


def _nothing() -> bytes:
    """A model that hands on a single value."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "nothing", [x], [y])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString())


class OrtModel:
    """A session with bound input and output: one that profiles until `profile` has been read; on a GPU another one then."""

    def __init__(self, model: bytes, device: OrtDevice) -> None:
        self._model, self._device = model, device
        self._folder = tempfile.TemporaryDirectory(prefix="milliprune-")
        self._clock = device.clock(lambda: self.run(1), self._elapsed_ms)
        self._open(profiling=True)

    def _open(self, profiling: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._device.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.enable_profiling = profiling
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        cuda = {"enable_cuda_graph": str(int(not profiling)), "use_tf32": str(int(self._device.precision == "tf32"))}
        providers = [(CUDA, cuda)] if self._device.on_gpu else [CPU]
        try:
            self._session: Any = onnxruntime.InferenceSession(self._model, options, providers=providers)
            self._binding = self._bound()
        except Exception as error:  # onnxruntime's exceptions share no public base class
            self._folder.cleanup()
            raise MeasurementError(f"ONNX Runtime refuses the model: {str(error).splitlines()[0]}") from error

    def _bound(self) -> Any:
        binding = self._session.io_binding()
        rng = np.random.default_rng(0)
        for value in self._session.get_inputs():
            image = rng.standard_normal(_static_shape(value), dtype=np.float32)
            binding.bind_ortvalue_input(value.name, self._resident(image, value))
        for value in self._session.get_outputs():
            scores = np.zeros(_static_shape(value), dtype=np.float32)
            binding.bind_ortvalue_output(value.name, self._resident(scores, value))
        return binding

    def _resident(self, array: np.ndarray, value: Any) -> Any:
        kind = np.float16 if value.type == "tensor(float16)" else np.float32
        return onnxruntime.OrtValue.ortvalue_from_numpy(array.astype(kind), "cuda" if self._device.on_gpu else "cpu", 0)

    def profile(self, runs: int) -> Events:
        self.run(runs + 2)
        events = json.loads(Path(self._session.end_profiling()).read_text())
        durations: dict[str, list[float]] = {}
        operations: dict[str, str] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                durations.setdefault(event["name"], []).append(event["dur"] / 1000)
                operations[event["name"]] = event["args"]["op_name"]
        if self._device.on_gpu:
            self._open(profiling=False)
        return [(_names(event, operations[event]), mean_of_quiet(ms[2:])) for event, ms in durations.items()]

    def times(self, runs: int) -> Times:
        return self._clock.times(runs)

    def run(self, times: int) -> None:
        for _ in range(times):
            self._session.run_with_iobinding(self._binding)

    def _elapsed_ms(self, replays: int) -> float:
        """By the host's clock: a run ends when the GPU has finished."""
        begun = time.perf_counter()
        self.run(replays)
        return (time.perf_counter() - begun) * 1000 / replays

    def close(self) -> None:
        self._session = self._binding = None
        self._folder.cleanup()


def _names(event: str, operation: str) -> tuple[str, ...]:
    """The graph's own name behind a profiler event; none for layout conversions, which ONNX Runtime adds itself."""
    if operation.startswith("Reorder"):
        return ()
    name = event.removesuffix("_kernel_time").removeprefix("fused ")
    name = re.sub(r"/\w+Fusion/?$", "", name)
    return (re.sub(r"(_nchwc)?(_token_\d+)?$", "", name),)


def _static_shape(value: Any) -> list[int]:
    if not all(isinstance(size, int) for size in value.shape):
        raise MeasurementError(f"the model's '{value.name}' has shape {value.shape}; export it with fixed sizes.")
    return list(value.shape)
