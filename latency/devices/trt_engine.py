"""ONNX models built into engines by TensorRT, or by TensorRT for RTX where that is what is installed.

Networks are strongly typed: the model's own types decide (`latency.graph.precision`), which is the only way that TensorRT 11
and the RTX edition know and that 10 has as well. Building needs no GPU where a compute capability is named (RTX edition).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from latency.errors import DeviceUnavailable, MeasurementError
from latency.files import write_whole
from latency.graph.precision import lowered

PRECISIONS = ("fp32", "tf32", "fp16", "int8")
OPTIMIZATION_LEVEL = 3
"""TensorRT's default, pinned: it decides how many tactics are tried."""


def tensorrt_library() -> Any:
    """The installed library, TensorRT before its RTX edition.

    Raises:
        DeviceUnavailable: neither is installed, or its CUDA libraries do not load.
    """
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:
            raise DeviceUnavailable(
                f"{name} is installed but does not load ({error}); install the build for this machine's CUDA, for example: "
                f"pip install {name.replace('_', '-')}-cu12"
            ) from error
    raise DeviceUnavailable(
        "device 'trt' needs TensorRT; install with: pip install tensorrt (or, for GeForce and RTX cards, tensorrt-rtx)"
    )


def require_capability(library: Any, name: str, capability: tuple[int, int]) -> None:
    """Raise DeviceUnavailable for a GPU that the RTX edition does not know; TensorRT itself says so when it builds."""
    known = getattr(library, "ComputeCapability", None)
    if known is None or library.__name__ != "tensorrt_rtx" or f"SM{capability[0]}{capability[1]}" in known.__members__:
        return
    offered = ", ".join(member[2:-1] + "." + member[-1] for member in known.__members__ if member.startswith("SM"))
    raise DeviceUnavailable(
        f"TensorRT for RTX does not run on {name} (compute capability {capability[0]}.{capability[1]}; it knows {offered}); "
        "install with: pip install tensorrt, or measure with --device torch-cuda."
    )


class EngineBuilder:
    """Builds engines of one precision.

    Args:
        library: from `tensorrt_library`.
        precision: one of PRECISIONS.
        timing_cache: file that keeps what tactics cost from build to build; None keeps nothing.
        capability: of the GPU to build for, as "SM89" (RTX edition); None builds for the GPU of this machine.
    """

    def __init__(self, library: Any, precision: str, timing_cache: Path | None = None, capability: str | None = None) -> None:
        self.library, self.precision, self.capability = library, precision, capability
        self.timing_cache = timing_cache
        self.logger = _logger(library)
        try:
            self._builder = library.Builder(self.logger)
        except (RuntimeError, TypeError) as error:  # pybind's, when the native object cannot be made
            raise DeviceUnavailable(
                f"{library.__name__} cannot start: {self.logger.reason()}. The driver must know its CUDA version."
            ) from error

    def build(self, model: bytes) -> bytes:
        """The serialized engine of `model` (float32 ONNX), which must have static shapes.

        Raises:
            MeasurementError: the parser refuses an operation, no tactic fits, or memory runs out.
        """
        self.logger.clear()
        network = self._builder.create_network(self._typed())
        parser = self.library.OnnxParser(network, self.logger)
        if not parser.parse(lowered(model, self.precision)) or network.num_outputs == 0:
            raise MeasurementError(f"TensorRT's parser refuses the model: {_refusal(parser) or self.logger.reason()}.")
        config = self.config()
        plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            raise MeasurementError(f"TensorRT cannot build an engine: {self.logger.reason()}")
        self._keep_timings(config)
        return bytes(plan)

    def _typed(self) -> int:
        return 1 << int(self.library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def config(self) -> Any:
        """TensorRT's settings for one build."""
        config = self._builder.create_builder_config()
        config.builder_optimization_level = OPTIMIZATION_LEVEL
        config.profiling_verbosity = self.library.ProfilingVerbosity.DETAILED
        tf32 = self.library.BuilderFlag.TF32
        (config.set_flag if self.precision == "tf32" else config.clear_flag)(tf32)
        if self.capability is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(self.library.ComputeCapability.__members__[self.capability], 0)
        if self.timing_cache is not None:
            kept = self.timing_cache.read_bytes() if self.timing_cache.exists() else b""
            config.set_timing_cache(config.create_timing_cache(kept) or config.create_timing_cache(b""), False)
        return config

    def _keep_timings(self, config: Any) -> None:
        if self.timing_cache is not None:
            write_whole(self.timing_cache, bytes(config.get_timing_cache().serialize()))


def _refusal(parser: Any) -> str:
    """The operation that the parser does not take, and why."""
    if parser.num_errors == 0:
        return ""
    error = parser.get_error(0)
    return f"operation '{error.node_operator()}' (node '{error.node_name()}'): {error.desc()}"


def _logger(library: Any) -> Any:
    """A logger of `library` that keeps errors instead of printing them."""

    class Collecting(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.Severity.ERROR, library.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

        def clear(self) -> None:
            self.errors.clear()

        def reason(self) -> str:
            """The first thing that went wrong: what follows are its consequences."""
            return self.errors[0] if self.errors else "no reason given"

    return Collecting()
