"""Where final trainings begin, and what is left of them."""

import numpy as np
import onnx
import pytest
import torch

import latency
from pruning.recipe import Recipe
from pruning.train import SUPERNETS, continued_structure, new_pruningnet, new_structure
from search.progress import Reporter
from search.retrain import Job, Start, exported, trained


@pytest.fixture(scope="module")
def pruningnet(tiny_network):
    return new_pruningnet(tiny_network, SUPERNETS["focused"], 0)


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_they_begin_with_what_the_pruningnet_generates(tiny_network, pruningnet) -> None:
    for share in (0.5, 1.0):
        widths = tiny_network.nearest_widths(share)
        assert same(Start(tiny_network, 0, None, pruningnet)(widths), continued_structure(pruningnet, widths))


def test_they_begin_at_the_scale_of_fresh_weights(tiny_network, pruningnet) -> None:
    widths = tiny_network.nearest_widths(0.5)
    begun, generated = Start(tiny_network, 0, None, pruningnet)(widths), pruningnet.structure(widths)
    begun, generated = begun.get_parameter("stem.0.weight"), generated.get_parameter("stem.0.weight")
    assert float(begun.norm()) == pytest.approx(np.sqrt(2 * 3))  # He, fan out: 2 · inputs / groups
    torch.testing.assert_close(begun / begun.norm(), generated / generated.norm())
    assert not torch.allclose(begun, generated)


def test_from_scratch_they_are_drawn_from_the_seed(tiny_network) -> None:
    widths = tiny_network.nearest_widths(0.5)
    begun = [Start(tiny_network, seed, None, None)(widths) for seed in (3, 3, 4)]
    assert same(begun[0], new_structure(tiny_network, widths, 3))
    assert same(begun[0], begun[1])
    assert not same(begun[0], begun[2])


def test_trained_weights_are_sliced_without_a_pruningnet_and_stay_with_the_unpruned_network(tiny_network, pruningnet) -> None:
    weights = tiny_network.module.state_dict()
    half, full = tiny_network.nearest_widths(0.5), np.array(tiny_network.max_widths)
    assert same(Start(tiny_network, 0, weights, None)(half), new_structure(tiny_network, half, 0, weights))
    assert same(Start(tiny_network, 0, weights, pruningnet)(half), continued_structure(pruningnet, half))
    assert same(Start(tiny_network, 0, weights, pruningnet)(full), new_structure(tiny_network, full, 0, weights))


def test_where_int8_is_to_run_it_is_exported_and_measured(tiny_network, pruningnet, digits, tmp_path) -> None:
    start, recipe = Start(tiny_network, 0, None, pruningnet), Recipe(epochs=3, batch=64)
    job = Job(tiny_network.module, tiny_network, digits, recipe, 0, start, tmp_path, Reporter(quiet=True))
    structure, row = trained(job, "winner", tuple(tiny_network.nearest_widths(0.7)), None, 1.0)
    left = exported(job, latency.open_device("ort", precision="int8"), structure, row)
    assert left["onnx_accuracy"] == pytest.approx(row["test_accuracy"], abs=0.005)
    assert left["int8_accuracy"] == pytest.approx(row["test_accuracy"], abs=0.05)
    assert left["exported_ms"] > 0
    operations = [node.op_type for node in onnx.load(tmp_path / "winner.int8.onnx").graph.node]
    assert operations.count("QuantizeLinear") > operations.count("Conv") / 2
    assert "int8_accuracy" not in exported(job, latency.open_device("ort"), structure, row)
