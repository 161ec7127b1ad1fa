"""What stages share: above all, what PruningNet begins with."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from pruning.importance import start_from
from pruning.train import new_structure
from search.config import RunConfig
from search.context import Context
from search.progress import Reporter


@pytest.fixture
def context(tiny_module, tiny_network, digits, lawful, tmp_path):
    def of(given=None, **options) -> Context:
        config = RunConfig(**{"macs": "50%", "pruningnet_epochs": 1, "epochs": 2} | options)
        folders = (tmp_path / "run", tmp_path / "pruningnets", tmp_path / "lut")
        return Context(config, *folders, Reporter(quiet=True), lawful, digits, tiny_module, tiny_network, given)

    return of


def test_by_default_it_begins_with_the_unpruned_network_as_trained(context, digits, tiny_network) -> None:
    run = context()
    unpruned, weights = run.unpruned, run.weights
    images = digits.normalised(digits.test.pixels)
    with torch.no_grad():
        torch.testing.assert_close(
            functional_call(tiny_network.module.eval(), weights, (images,)), unpruned(images), rtol=1e-3, atol=1e-3
        )
    assert (unpruned(images).argmax(1) == digits.test.labels).float().mean() > 0.5
    assert any(not torch.equal(weights[name], tensor) for name, tensor in unpruned.state_dict().items())


def test_all_structures_begin_with_the_first_channels(context, tiny_network, monkeypatch) -> None:
    monkeypatch.setattr("search.context.train_pruningnet", lambda *supernet, **facts: None)
    run, half = context(), tiny_network.nearest_widths(0.5)
    for name, tensor in run.pruningnet(None)[0].weights(half).items():
        assert torch.equal(tensor, run.weights[name][tiny_network.kept(name, half)]), name


def test_the_unpruned_network_is_trained_once_for_all_budgets_and_seeds_apart(context, tmp_path) -> None:
    first = context().unpruned.state_dict()
    (checkpoint,) = (tmp_path / "pruningnets").glob("*unpruned*")
    written = checkpoint.stat().st_mtime_ns
    again = context(params="50%").unpruned.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert checkpoint.stat().st_mtime_ns == written
    assert not torch.equal(context(seed=1).unpruned.state_dict()["stem.0.weight"], first["stem.0.weight"])


def test_weights_that_are_given_are_what_the_unpruned_network_begins_with(context, tiny_network, monkeypatch) -> None:
    monkeypatch.setattr("search.context.train_structure", lambda structure, *rest, **facts: structure)
    given = new_structure(tiny_network, np.array(tiny_network.max_widths), 5).state_dict()
    assert all(torch.equal(given[name], tensor) for name, tensor in context(given).unpruned.state_dict().items())


def test_the_papers_is_drawn_from_the_seed_or_begins_with_weights_that_are_given(context, digits, tiny_network) -> None:
    assert context(recipe="paper").weights is None
    given = new_structure(tiny_network, np.array(tiny_network.max_widths), 5).state_dict()
    weights = context(given, recipe="paper").weights
    assert all(torch.equal(weights[name], tensor) for name, tensor in start_from(tiny_network, given, digits).items())


@pytest.mark.parametrize(("recipe", "given", "epochs"), [("focused", None, 5), ("paper", None, 20), ("focused", 3, 3)])
def test_what_begins_warm_trains_shorter_than_what_begins_from_scratch(context, monkeypatch, recipe, given, epochs) -> None:
    trained = []
    monkeypatch.setattr("search.context.train_structure", lambda structure, *rest, **facts: structure)
    monkeypatch.setattr("search.context.train_pruningnet", lambda net, kind, data, recipe, **facts: trained.append(recipe))
    context(recipe=recipe, epochs=20, pruningnet_epochs=given).pruningnet(None)
    assert [one.epochs for one in trained] == [epochs]


def test_another_order_of_channels_is_no_other_pruningnet(context, monkeypatch) -> None:
    """On another machine roundings may bring two channels into another order: a search there must find the same one."""
    _, path = context().pruningnet(None)
    monkeypatch.setattr("search.context.start_from", lambda network, weights, data: weights)
    assert context().pruningnet(None)[1] == path
