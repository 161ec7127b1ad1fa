"""Extraction and export: a structure on its own."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

import latency
from pruning.data import Dataset
from pruning.evaluate import accuracy
from pruning.export import exported_accuracy, program_bytes, structure_onnx
from pruning.extract import extract, in_own_class
from pruning.networks import load


def test_the_unpruned_structure_computes_what_the_module_does(tiny_module, tiny_network) -> None:
    images = torch.randn(3, 3, 16, 16)
    structure = extract(tiny_network, tiny_network.max_widths, tiny_network.module.state_dict())
    torch.testing.assert_close(structure(images), tiny_module.eval()(images))


def test_a_pruned_structure_keeps_the_first_channels(tiny_network) -> None:
    widths = np.array([8, 16, 4, 24, 12])
    state = tiny_network.module.state_dict()
    structure = extract(tiny_network, widths, state)
    assert torch.equal(structure.get_parameter("block.depthwise.0.weight"), state["block.depthwise.0.weight"][:16])
    assert structure.get_submodule("block.depthwise.0").groups == 16
    assert torch.equal(structure.get_parameter("hidden.weight"), state["hidden.weight"][:12, : 24 * 4])
    assert torch.equal(structure.get_buffer("feature.1.running_var"), state["feature.1.running_var"][:24])
    assert structure(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_structures_share_nothing_with_the_network(tiny_network) -> None:
    state = tiny_network.module.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    structure = extract(tiny_network, tiny_network.max_widths, state)
    with torch.no_grad():
        for tensor in structure.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_network.module.state_dict().items())


@pytest.mark.parametrize("name", ["tinynet:tiny", "mobilenet_v2"])
def test_what_is_shipped_runs_the_very_operations_that_were_measured(name: str, rng, random_widths, awake) -> None:
    """An untrained network has zero biases, and an exporter may drop them: then the table would be too fast."""
    network = latency.trace(load(name, num_classes=10), (1, 3, 32, 32))
    (widths,) = random_widths(network, rng, 1)
    trained = awake(extract(network, widths), (1, 3, 32, 32))
    graphs = [onnx.load_from_string(model).graph for model in (network.onnx(widths), structure_onnx(trained, (1, 3, 32, 32)))]
    measured, shipped = ([(node.op_type, len(node.input)) for node in graph.node] for graph in graphs)
    assert measured == shipped


def test_an_exported_file_is_as_accurate_as_the_module(digits: Dataset, tiny_network, tmp_path) -> None:
    torch.manual_seed(0)
    structure = extract(tiny_network, [8, 16, 4, 24, 12])
    for batch in (1, 7):
        (tmp_path / "net.onnx").write_bytes(structure_onnx(structure, (batch, 3, 16, 16)))
        assert exported_accuracy(tmp_path / "net.onnx", digits.test, digits) == accuracy(structure, digits.test, digits)


@pytest.mark.parametrize(
    "name",
    [
        "tinynet:tiny",
        "mobilenet_v1",
        "resnet18",
        "tinynet:small_densenet",
        "shufflenet_v2_x0_5",
        "tinynet:tiny_convnext",
        "tinynet:halves",
        "tinynet:gates",
        "tinynet:derived",
        "tinynet:twice",
        "tinynet:widening",
        "tinynet:hourglass",
        "tinynet:tokens",
        "tinynet:classed",
    ],
)
def test_a_structure_in_the_users_own_class(name: str, awake) -> None:
    module = load(name, num_classes=10)
    network = latency.trace(module, (2, 3, 32, 32), align=8)
    structure = awake(extract(network, network.nearest_widths(0.5)), (2, 3, 32, 32))
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    own = in_own_class(module, structure, (2, 3, 32, 32))
    assert type(own) is type(module)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(own(images), structure(images), atol=1e-4, rtol=1e-4)
    assert {key: tuple(tensor.shape) for key, tensor in own.state_dict().items()} == {
        key: tuple(tensor.shape) for key, tensor in structure.state_dict().items()
    }
    assert all(torch.equal(before[key], tensor) for key, tensor in module.state_dict().items())


def test_a_class_that_relies_on_its_widths_is_left_for_the_traced_module(awake) -> None:
    class Counted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 16, 3), torch.nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).mean((2, 3)) * (1.0 if self.first.out_channels == 16 else 2.0))

    module = Counted()
    network = latency.trace(module, (1, 3, 16, 16), align=8)
    structure = awake(extract(network, [8]), (1, 3, 16, 16))
    assert in_own_class(module, structure, (1, 3, 16, 16)) is structure


@pytest.mark.parametrize("name", ["tinynet:tiny", "tinynet:mixed", "tinynet:tiny_convnext", "tinynet:classed"])
def test_the_program_needs_nothing_of_ours(name: str, tmp_path, awake) -> None:
    network = latency.trace(load(name, num_classes=10), (1, 3, 32, 32), align=8)
    structure = awake(extract(network, network.nearest_widths(0.5)), (1, 3, 32, 32))
    (tmp_path / "net.pt2").write_bytes(program_bytes(structure, (1, 3, 32, 32)))
    images = torch.randn(5, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import sys, torch; model = torch.export.load('net.pt2').module();"
        "torch.save(model(torch.load('images.pt')), 'out.pt');"
        "assert not {'pruning', 'search', 'latency', 'tinynet'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), structure(images), atol=1e-4, rtol=1e-4)
