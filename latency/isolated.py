"""The way others build tables: every kernel as a model of its own. Here only to be compared with.

An isolated kernel runs from a warm cache and pays layout conversions that the whole network does not, so the sum over a
network's kernels is off by up to a quarter either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx
from onnx import helper

from latency.graph.kernels import Kernel, find_kernels
from latency.graph.shapes import stated_values, static_shapes
from latency.measuring.kept import KeptMeasurements
from latency.measuring.measurement import Protocol

PROTOCOL = Protocol(rounds=4, round_ms=1.0, warmup_ms=2.0, profiled_runs=1)


def isolated_models(model: bytes) -> list[tuple[Kernel, bytes]]:
    """Each kernel of `model`, and a model of nothing else; without those that compute indices, or look up by them."""
    proto = onnx.load_from_string(model)
    shapes = static_shapes(proto)
    floats = {one.name for one in stated_values(proto) if one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    result = []
    for placed in find_kernels(proto):
        nodes = [node for node in proto.graph.node if node.output[0] in placed.names]
        made = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
        if not floats.issuperset({placed.output, *(read.keys() - weights.keys())}):
            continue
        graph = helper.make_graph(
            nodes,
            "kernel",
            [_value(name, shapes[name]) for name in read if name not in weights],
            [_value(placed.output, shapes[placed.output])],
            [weights[name] for name in read if name in weights],
        )
        alone = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
        result.append((placed.kernel, alone.SerializeToString()))
    return result


def isolated_sums(
    device: KeptMeasurements, models: Iterable[bytes], core_ms: float, progress: Callable[[int], object] = lambda done: None
) -> list[float]:
    """Milliseconds of each model, at that speed of the core, as the sum of its kernels, each kind measured once and alone."""
    known: dict[Kernel, float] = {}
    sums = []
    for model in models:
        parts = isolated_models(model)
        for kernel, alone in parts:
            if kernel not in known:
                known[kernel] = device.measured(f"alone {kernel}", [alone], PROTOCOL)[0].at_speed(core_ms)
        sums.append(sum(known[kernel] for kernel, _ in parts))
        progress(1)
    return sums


def _value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
