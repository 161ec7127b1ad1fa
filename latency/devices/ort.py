"""ONNX Runtime on the CPU of this machine."""

from __future__ import annotations

import json
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from latency.errors import DeviceUnavailable, MeasurementError
from latency.fingerprint import Fingerprint, preemptions, processor
from latency.measurement import Measurement
from latency.protocol import measure

try:
    import onnxruntime
except ImportError as error:
    raise DeviceUnavailable("device 'ort' needs ONNX Runtime; install it with: pip install onnxruntime") from error

PATIENCE = 4
PROVIDER = "CPUExecutionProvider"


class OrtDevice:
    """ONNX Runtime, CPU execution provider, all graph optimisations, fp32."""

    name = "ort"

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        if precision != "fp32":
            raise DeviceUnavailable(f"precision '{precision}' given; device 'ort' measures fp32.")
        self.threads = threads

    def fingerprint(self) -> Fingerprint:
        return {
            "device": self.name,
            "processor": processor(),
            "system": f"{platform.system()} {platform.machine()}",
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "threads": str(self.threads),
            "precision": "fp32",
        }

    def load(self, model: bytes) -> OrtModel:
        return OrtModel(model, self.threads)

    def measure(self, model: bytes) -> Measurement:
        return measure(self, [model])[0]


class OrtModel:
    """A session with bound input and output. It profiles until `profile` has been read, and never after."""

    def __init__(self, model: bytes, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="milliprune-")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        try:
            self._session: Any = onnxruntime.InferenceSession(model, options, providers=[PROVIDER])
            self._binding = self._bound()
        except Exception as error:  # onnxruntime's exceptions share no public base class
            self._folder.cleanup()
            raise MeasurementError(f"ONNX Runtime refuses the model: {str(error).splitlines()[0]}") from error

    def _bound(self) -> Any:
        binding = self._session.io_binding()
        rng = np.random.default_rng(0)
        for value in self._session.get_inputs():
            image = rng.standard_normal(_static_shape(value), dtype=np.float32)
            binding.bind_ortvalue_input(value.name, onnxruntime.OrtValue.ortvalue_from_numpy(image))
        for value in self._session.get_outputs():
            scores = np.zeros(_static_shape(value), dtype=np.float32)
            binding.bind_ortvalue_output(value.name, onnxruntime.OrtValue.ortvalue_from_numpy(scores))
        return binding

    def profile(self, runs: int) -> list[tuple[str | None, float]]:
        for _ in range(runs + 2):
            self._session.run_with_iobinding(self._binding)
        events = json.loads(Path(self._session.end_profiling()).read_text())
        durations: dict[str, list[float]] = {}
        operations: dict[str, str] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                durations.setdefault(event["name"], []).append(event["dur"] / 1000)
                operations[event["name"]] = event["args"]["op_name"]
        return [(_name(event, operations[event]), float(np.mean(_quiet(ms[2:])))) for event, ms in durations.items()]

    def time_ms(self, runs: int) -> tuple[np.ndarray, np.ndarray]:
        """A run during which another process took the core is repeated, up to `PATIENCE` times, after a pause: who has
        slept is left alone for a while."""
        quiet: list[float] = []
        disturbed: list[float] = []
        while len(quiet) < runs and len(quiet) + len(disturbed) < PATIENCE * runs:
            preempted, begun = preemptions(), time.perf_counter()
            self._session.run_with_iobinding(self._binding)
            elapsed = time.perf_counter() - begun
            if preemptions() == preempted:
                quiet.append(elapsed * 1000)
            else:
                disturbed.append(elapsed * 1000)
                time.sleep(elapsed)
        times = np.array((quiet + sorted(disturbed))[:runs])
        return times, np.arange(runs) < len(quiet)

    def close(self) -> None:
        self._session = self._binding = None
        self._folder.cleanup()


def _quiet(durations: list[float]) -> np.ndarray:
    """The faster half: the profiler counts whole microseconds, so a mean of quiet runs says more than a median."""
    return np.sort(durations)[: (len(durations) + 1) // 2]


def _name(event: str, operation: str) -> str | None:
    """The graph's own name behind a profiler event; None for layout conversions, which ONNX Runtime adds itself."""
    if operation.startswith("Reorder"):
        return None
    name = event.removesuffix("_kernel_time").removeprefix("fused ")
    name = re.sub(r"/\w+Fusion/$", "", name)
    return re.sub(r"_nchwc(_token_\d+)?$", "", name)


def _static_shape(value: Any) -> list[int]:
    if not all(isinstance(size, int) for size in value.shape):
        raise MeasurementError(f"the model's '{value.name}' has shape {value.shape}; export it with fixed sizes.")
    return list(value.shape)
