"""The networks of a run, trained by one recipe and exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, fx, nn

from latency.devices import Device
from latency.graph.network import Network
from pruning.data import Dataset
from pruning.evaluate import accuracy
from pruning.export import calibrated_int8, exported_accuracy, program_bytes, structure_onnx
from pruning.extract import in_own_class
from pruning.fit import training_steps
from pruning.normalise import folded
from pruning.pruningnet import PruningNet
from pruning.recipe import Recipe
from pruning.train import continued_structure, new_structure, train_structure
from pruning.workers import Workers
from search.progress import Reporter, training_note
from search.report import OutputError, write_file


@dataclass(frozen=True)
class Start:
    """Gives structures int64[L] of `network` as their training begins: with what `pruningnet` generates for them.

    Without one they begin from scratch, as in the paper, or with slices of the trained `weights` of the unpruned network. The
    unpruned network itself keeps those weights in any case.
    """

    network: Network
    seed: int
    weights: Mapping[str, Tensor] | None
    pruningnet: PruningNet | None

    def __call__(self, widths: np.ndarray) -> fx.GraphModule:
        trained_already = self.weights is not None and tuple(widths) == self.network.max_widths
        if self.pruningnet is None or trained_already:
            return new_structure(self.network, widths, self.seed, self.weights)
        return continued_structure(self.pruningnet, widths)


@dataclass(frozen=True)
class Job:
    """How to train structures of `network`, traced from `module`. `start` gives a structure int64[L] to be trained."""

    module: nn.Module
    network: Network
    data: Dataset
    recipe: Recipe
    seed: int
    start: Start
    out: Path
    reporter: Reporter
    teacher: nn.Module | None = None

    def taught_by(self, teacher: nn.Module | None) -> Job:
        """The same, distilled from `teacher`."""
        return replace(self, teacher=teacher)


def trained(
    job: Job, label: str, widths: tuple[int, ...], measured_ms: float | None, predicted_ms: float
) -> tuple[nn.Module, dict[str, Any]]:
    """The structure `widths` (int[L]), trained or loaded from its checkpoint, and its row of the result."""
    data, network = job.data, job.network
    structure = job.start(np.array(widths)).to(data.mean.device)
    with job.reporter.bar(f"training {label}", training_steps(data, job.recipe)) as update:
        train_structure(
            structure, network, np.array(widths), data, job.recipe, seed=job.seed, teacher=job.teacher,
            checkpoint=job.out / "checkpoints" / f"{label}.safetensors",
            progress=partial(training_note, update),
        )  # fmt: skip
    return structure, described(job, structure, label, widths, measured_ms, predicted_ms)


def described(
    job: Job, structure: nn.Module, label: str, widths: tuple[int, ...], measured_ms: float | None, predicted_ms: float
) -> dict[str, Any]:
    """The row of a trained structure in the result."""
    return {
        "label": label,
        "widths": [int(width) for width in widths],
        "test_accuracy": accuracy(structure, job.data.test, job.data),
        "measured_ms": measured_ms,
        "predicted_ms": predicted_ms,
        "macs": job.network.macs(widths),
        "params": job.network.params(widths),
    }


def exported(job: Job, device: Device, structure: nn.Module, row: Mapping[str, Any]) -> dict[str, Any]:
    """Write ONNX, PyTorch program and weights; load the ONNX file again, see that it is as accurate, and how fast. Where
    ONNX Runtime is to compute in int8, so it is with a file in int8, but for its accuracy, which is what it is.

    Of processes that train together the first does it alone, and the others have nothing to say of it.
    """
    if Workers.joined().rank:
        return {}
    label, out, shape = row["label"], job.out, job.network.input_shape
    structure = folded(structure.cpu()).to(memory_format=torch.contiguous_format)
    model = structure_onnx(structure, shape)
    own = in_own_class(job.module, structure, shape)
    write_file(out / f"{label}.safetensors", safetensors.torch.save(structure.state_dict()))
    write_file(out / f"{label}.pt2", program_bytes(own, shape))
    write_file(out / f"{label}.onnx", model)
    onnx_accuracy = exported_accuracy(out / f"{label}.onnx", job.data.test, job.data)
    if abs(onnx_accuracy - row["test_accuracy"]) > max(0.002, 1.5 / len(job.data.test)):
        raise OutputError(
            f"the exported ONNX model reaches {onnx_accuracy:.2%} where PyTorch reaches {row['test_accuracy']:.2%}; "
            "please report it."
        )
    result = {"onnx_accuracy": onnx_accuracy, "module": type(own).__name__ if own is not structure else "traced"}
    if {"device": "ort", "precision": "int8"}.items() <= device.fingerprint().items():
        model = calibrated_int8(model, job.data, shape[0])
        write_file(out / f"{label}.int8.onnx", model)
        result["int8_accuracy"] = exported_accuracy(out / f"{label}.int8.onnx", job.data.test, job.data)
    return result | ({"exported_ms": device.measure(model).latency_ms} if device.at_hand else {})
