"""A trained structure as an ONNX file, and the proof that the file does what the module does."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latency.graph.template import export_onnx
from pruning.data import Dataset
from pruning.evaluate import calibration_images
from pruning.images import Images

CALIBRATION_IMAGES = 256
"""Training images by which ranges of activations are told."""


def structure_onnx(module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
    """Self-contained ONNX bytes of `module` for inputs of `input_shape`."""
    model: bytes = export_onnx(module, input_shape).SerializeToString()
    return model


def program_bytes(module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
    """`module` as a PyTorch program for `torch.export.load`: needs neither our code nor the network's own; any batch size."""
    images = torch.zeros(2, *input_shape[1:])
    program = torch.export.export(module.eval(), (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def calibrated_int8(model: bytes, data: Dataset, batch: int) -> bytes:
    """The ONNX `model`, of `batch` images, in int8 as ONNX Runtime computes it, calibrated by training images."""
    from latency.devices.ort_int8 import quantized

    images = calibration_images(data, max(CALIBRATION_IMAGES, batch)).contiguous().cpu().numpy()
    return quantized(model, [images[end - batch : end] for end in range(batch, len(images) + 1, batch)])


def exported_accuracy(path: Path, images: Images, data: Dataset) -> float:
    """Accuracy (0 … 1) of the ONNX file at `path` under ONNX Runtime; its fixed batch is filled up by repetition."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    batch = entry.shape[0]
    correct = 0
    for start in range(0, len(images), batch):
        index = (torch.arange(start, start + batch)) % len(images)
        part = images.subset(index)
        scores = session.run(None, {entry.name: data.normalised(part.pixels).contiguous().cpu().numpy()})[0]
        hits = scores.argmax(1) == part.labels.cpu().numpy()
        correct += int(hits[: len(images) - start].sum())
    return correct / len(images)
