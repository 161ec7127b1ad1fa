"""TensorRT on an NVIDIA GPU, or TensorRT for RTX where that is what is installed.

End to end is a CUDA graph of the enqueued engine between two events, inputs resident. Replays follow each other, so the L2
cache holds what the replay before left there, as it does in a stream of images. The card's settings are never changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from latency.devices.clock import GPU_SPREAD, GpuClock
from latency.devices.cuda import Card, Gpu, Graph, require_gpu
from latency.devices.local import LocalDevice
from latency.devices.nvml import GpuMonitor
from latency.devices.trt_engine import OPTIMIZATION_LEVEL, PRECISIONS, EngineBuilder, require_capability, tensorrt_library
from latency.devices.trt_layers import nodes_by_layer
from latency.errors import MeasurementError
from latency.graph.precision import require_precision
from latency.measuring.device import Events, Times
from latency.measuring.fingerprint import Fingerprint, GpuState, slug


class TensorRTDevice(LocalDevice):
    """TensorRT on the first GPU that CUDA shows."""

    max_spread = GPU_SPREAD

    def __init__(self, name: str, threads: int, precision: str, lut: Path | None) -> None:
        self.name, self.precision = name, precision
        require_precision(precision, PRECISIONS, name)
        require_gpu(name)
        self.card = Card.first()
        self.library = tensorrt_library()
        require_capability(self.library, self.card.name, self.card.capability)
        self.gpu = Gpu()
        self.monitor = GpuMonitor(self.card.pci_bus_id)
        self._builder = EngineBuilder(self.library, precision, lut / slug(self.fingerprint()) / "timing.cache" if lut else None)
        self._runtime = self.library.Runtime(self._builder.logger)

    def fingerprint(self) -> Fingerprint:
        return {
            "device": self.name,
            **self.card.fingerprint(),
            "runtime": f"{self.library.__name__} {self.library.__version__}",
            "optimization level": str(OPTIMIZATION_LEVEL),
            "precision": self.precision,
        }

    def load(self, model: bytes) -> TensorRTModel:
        with self.gpu.active():
            engine = self._runtime.deserialize_cuda_engine(self._builder.build(model))
        if engine is None:
            raise self.failure("cannot load the engine it built")
        order = [node.name for node in onnx.load_from_string(model).graph.node]
        return TensorRTModel(self, engine, order)

    def failure(self, what: str) -> MeasurementError:
        """What TensorRT could not do, and why by its own log."""
        return MeasurementError(f"TensorRT {what}: {self._builder.logger.reason()}")

    def observed(self) -> GpuState | None:
        return self.monitor.observed()


class TensorRTModel:
    """An engine with its tensors resident: profiled in a context of its own, then timed as a CUDA graph in another."""

    def __init__(self, device: TensorRTDevice, engine: Any, order: list[str]) -> None:
        self._device, self._engine, self._order = device, engine, order
        self._graph: Any = None
        self._clock = GpuClock(self._elapsed_ms, device.monitor)
        with device.gpu.active():
            self._stream = device.gpu.driver.Stream()
            names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
            self._tensors = {name: device.gpu.resident(self._content(name)) for name in names}
            self._context = self._bound()

    def _content(self, name: str) -> np.ndarray:
        shape = tuple(self._engine.get_tensor_shape(name))
        if min(shape, default=1) < 1:
            raise MeasurementError(f"the model's '{name}' has shape {shape}; export it with fixed sizes.")
        kind = self._device.library.nptype(self._engine.get_tensor_dtype(name))
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(kind)

    def _bound(self) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise self._device.failure("cannot run the engine")
        for name, memory in self._tensors.items():
            context.set_tensor_address(name, int(memory))
        return context

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._device.failure("cannot run the engine")

    def profile(self, runs: int) -> Events:
        library = self._device.library
        inspector = self._engine.create_engine_inspector()
        layers = nodes_by_layer(inspector.get_engine_information(library.LayerInformationFormat.JSON), self._order)
        profiler = _layer_profiler(library)
        with self._device.gpu.active():
            for _ in range(3):
                self._enqueue()
            self._stream.synchronize()
            self._context.profiler = profiler
            for _ in range(runs):
                self._enqueue()
                self._stream.synchronize()
            self._context = self._bound()  # one that has no profiler
        return [(layers.get(name, ()), float(np.median(ms))) for name, ms in profiler.milliseconds.items()]

    def times(self, runs: int) -> Times:
        with self._device.gpu.active():
            if self._graph is None:
                self._enqueue()  # allocates what a graph cannot record
                self._stream.synchronize()
                self._graph = Graph(self._stream, self._enqueue)
            return self._clock.times(runs)

    def run(self, times: int) -> None:
        with self._device.gpu.active():
            for _ in range(times):
                self._enqueue() if self._graph is None else self._graph.launch()
            self._stream.synchronize()

    def _elapsed_ms(self, replays: int) -> float:
        return self._device.gpu.elapsed_ms(self._stream, self._graph.launch, replays)

    def close(self) -> None:
        """Release graph, context, engine and memory in this order."""
        with self._device.gpu.active():
            if self._graph is not None:
                self._graph.close()
            self._graph = self._context = self._engine = None
            for memory in self._tensors.values():
                memory.free()
            self._tensors = {}


def _layer_profiler(library: Any) -> Any:
    class LayerProfiler(library.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.milliseconds: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.milliseconds.setdefault(layer_name, []).append(ms)

    return LayerProfiler()
