"""PyTorch itself: the structure as a module, BN folded, on the CPU or as a CUDA graph on the first GPU, eager or compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, fx

from latency.devices.clock import mean_of_quiet
from latency.devices.library import LibraryDevice
from latency.devices.torch_graph import torch_module
from latency.errors import DeviceUnavailable, MeasurementError
from latency.graph.shapes import static_shapes
from latency.measuring.device import Events, Times


class TorchDevice(LibraryDevice):
    """ "torch" and "torch-cuda" run the operations one by one, "torch-compiled" and "torch-cuda-compiled" through
    torch.compile. Kernels' shares are those of the operations run one by one in every case."""

    def __init__(self, name: str, threads: int, precision: str, lut: Path | None) -> None:
        super().__init__(name, threads, precision, f"torch {torch.__version__}")
        self.compiled = "compiled" in name
        if self.on_gpu and not torch.cuda.is_available():
            raise DeviceUnavailable(f"device '{name}' needs a PyTorch built for CUDA; this is {torch.__version__}.")

    def load(self, model: bytes) -> TorchModel:
        return TorchModel(model, self)

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Threads and arithmetic of this device, inside; what other code in this process has set, afterwards."""
        threads, cudnn, matmul = torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        try:
            torch.set_num_threads(self.threads)
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(threads)
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = cudnn, matmul


class TorchModel:
    """A module on its device, with its inputs beside it."""

    def __init__(self, model: bytes, device: TorchDevice) -> None:
        self._device = device
        proto = _parsed(model)
        self._module, self._names = torch_module(proto)
        kind = torch.float16 if device.precision == "fp16" else torch.float32
        where = torch.device("cuda" if device.on_gpu else "cpu")
        self._module = self._module.to(where, kind)
        shapes, generator = static_shapes(proto), torch.Generator().manual_seed(0)
        self._inputs = [torch.randn(shapes[value.name], generator=generator).to(where, kind) for value in proto.graph.input]
        self._graph: torch.cuda.CUDAGraph | None = None
        with device.settings(), _explained():
            self._module(*self._inputs)
            self._ready: Any = self._compiled() if device.compiled else self._module
            if device.on_gpu:
                self._graph = self._captured()
        self._clock = device.clock(lambda: self._ready(*self._inputs), self._elapsed_ms)

    def _compiled(self) -> Any:
        torch.compiler.reset()  # every structure is another program; recompilation limits count them as one
        compiled = torch.compile(self._module, dynamic=False)
        compiled(*self._inputs)
        return compiled

    def profile(self, runs: int) -> Events:
        profiler = _Timed(self._module, self._device.on_gpu)
        with self._device.settings():
            for _ in range(runs + 2):
                profiler.run(*self._inputs)
        return [((self._names[node],), mean_of_quiet(ms[2:])) for node, ms in profiler.milliseconds.items()]

    def times(self, runs: int) -> Times:
        with self._device.settings():
            return self._clock.times(runs)

    def run(self, times: int) -> None:
        with self._device.settings():
            for _ in range(times):
                self._graph.replay() if self._graph else self._ready(*self._inputs)
            if self._device.on_gpu:
                torch.cuda.synchronize()

    def _captured(self) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries choose their kernels and workspaces before anything is recorded
                self._ready(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._ready(*self._inputs)
        return graph

    def _elapsed_ms(self, replays: int) -> float:
        assert self._graph is not None
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(replays):
            self._graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / replays

    def close(self) -> None:
        self._graph = self._ready = self._module = None  # type: ignore[assignment]
        self._inputs = []


class _Timed(fx.Interpreter):
    """Runs a module operation by operation and times each: by the host's clock, or by the GPU's."""

    def __init__(self, module: fx.GraphModule, on_gpu: bool) -> None:
        super().__init__(module)
        self.milliseconds: dict[str, list[float]] = {}
        self._on_gpu = on_gpu

    def run_node(self, node: fx.Node) -> Any:
        if node.op != "call_function":
            return super().run_node(node)
        result, ms = (self._on_the_gpu if self._on_gpu else self._on_the_cpu)(node)
        self.milliseconds.setdefault(node.name, []).append(ms)
        return result

    def _on_the_cpu(self, node: fx.Node) -> tuple[Any, float]:
        begun = perf_counter()
        result = super().run_node(node)
        return result, (perf_counter() - begun) * 1000

    def _on_the_gpu(self, node: fx.Node) -> tuple[Any, float]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        result: Tensor = super().run_node(node)
        end.record()
        end.synchronize()
        return result, start.elapsed_time(end)


def _parsed(model: bytes) -> onnx.ModelProto:
    try:
        proto = onnx.load_from_string(model)
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise MeasurementError(f"this is no valid ONNX model: {str(error).splitlines()[0]}") from error
    return proto


@contextmanager
def _explained() -> Iterator[None]:
    """torch's errors (shapes, memory, no compiler) as ours."""
    try:
        yield
    except RuntimeError as error:
        raise MeasurementError(f"PyTorch cannot run the model: {str(error).splitlines()[0]}") from error
