"""Extraction and export: a structure on its own."""

import numpy as np
import onnx
import pytest
import torch

import latency
from pruning.data import Dataset
from pruning.evaluate import accuracy
from pruning.export import exported_accuracy, structure_onnx
from pruning.extract import extract
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
