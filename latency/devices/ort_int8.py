"""A model in int8 as ONNX Runtime's own quantization states it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from latency.graph.quantization import stated_precision


def quantized(model: bytes, batches: Iterable[np.ndarray] = ()) -> bytes:
    """`model` with QuantizeLinear and DequantizeLinear around all that ONNX Runtime computes in whole numbers: weights int8 per
    output channel, activations uint8 per tensor. One that has them already stays as it is.

    Where weights are shared through Identity, as PyTorch's older exporter does, it is optimised first: quantization sees none
    of them. Otherwise its kernels stay those that tables know.

    Args:
        batches: inputs float32 [N, C, H, W] by which it is calibrated. Without any it is by noise, which will do where only
            milliseconds matter (the medians of two networks calibrated with other images are within 1 %, a script).
    """
    proto = onnx.load_from_string(model)
    if stated_precision(proto) == "int8":
        return model
    tensors = {tensor.name for tensor in proto.graph.initializer}
    shared = any(node.op_type == "Identity" and node.input[0] in tensors for node in proto.graph.node)
    inputs = [{proto.graph.input[0].name: batch} for batch in batches] or [_noise(proto)]
    with tempfile.TemporaryDirectory(prefix="milliprune-") as folder, _without_warnings():
        given, prepared, made = (Path(folder) / f"{name}.onnx" for name in ("given", "prepared", "made"))
        given.write_bytes(model)
        quant_pre_process(given, prepared, skip_symbolic_shape=True, skip_optimization=not shared)
        quantize_static(
            prepared, made, _Reader(inputs), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return made.read_bytes()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Which ONNX Runtime logs for each weight that has no axis of channels."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


class _Reader:
    """What a calibrator reads."""

    def __init__(self, inputs: Iterable[dict[str, np.ndarray]]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)


def _noise(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {value.name: [one.dim_value for one in value.type.tensor_type.shape.dim] for value in model.graph.input}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in sizes.items()}
