"""Training on real digits: it learns, it resumes bit for bit, and its checkpoints fit only what they belong to."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import latency
from pruning.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from pruning.data import Dataset
from pruning.evaluate import accuracy
from pruning.extract import extract
from pruning.networks import load
from pruning.train import Recipe, TrainingError, new_pruningnet, pruningnet_path, train_pruningnet, train_structure

RECIPE = Recipe(epochs=2, batch=32)


@pytest.fixture(scope="module")
def few(digits) -> Dataset:
    return dataclasses.replace(digits, train=digits.train.subset(torch.arange(160)))


def interrupted_at(step: int):
    def progress(done: int, loss: float) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def quietly(done: int, loss: float) -> None:
    pass


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_pruningnet_resumes_bit_for_bit(stop: int, few, tiny_network, tmp_path) -> None:
    straight, broken, resumed = (new_pruningnet(tiny_network, 0) for _ in range(3))
    train_pruningnet(straight, few, RECIPE, seed=3, checkpoint=tmp_path / "a", progress=quietly)
    with pytest.raises(KeyboardInterrupt):
        train_pruningnet(broken, few, RECIPE, seed=3, checkpoint=tmp_path / "b", progress=interrupted_at(stop))
    steps: list[int] = []
    train_pruningnet(resumed, few, RECIPE, seed=3, checkpoint=tmp_path / "b", progress=lambda done, loss: steps.append(done))
    assert steps == list(range(stop, 11))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_structure_resumes_bit_for_bit_and_a_finished_one_is_loaded(few, tiny_network, tmp_path) -> None:
    widths = np.array(tiny_network.max_widths)
    straight, resumed, again = (extract(tiny_network, widths) for _ in range(3))
    arguments = (tiny_network, widths, few, RECIPE)
    train_structure(straight, *arguments, seed=0, checkpoint=tmp_path / "a", progress=quietly)
    with pytest.raises(KeyboardInterrupt):
        train_structure(resumed, *arguments, seed=0, checkpoint=tmp_path / "b", progress=interrupted_at(6))
    train_structure(resumed, *arguments, seed=0, checkpoint=tmp_path / "b", progress=quietly)
    steps: list[int] = []
    train_structure(again, *arguments, seed=0, checkpoint=tmp_path / "b", progress=lambda done, loss: steps.append(done))
    assert steps == [10]
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_training_from_scratch_learns_digits(digits, tiny_network, tmp_path) -> None:
    structure = extract(tiny_network, tiny_network.max_widths)
    recipe = Recipe(epochs=8, batch=32)
    widths = np.array(tiny_network.max_widths)
    train_structure(structure, tiny_network, widths, digits, recipe, seed=0, checkpoint=tmp_path / "c", progress=quietly)
    assert accuracy(structure, digits.test, digits) > 0.85


def test_a_loss_that_explodes_stops_with_advice(few, tiny_network, tmp_path) -> None:
    structure = extract(tiny_network, tiny_network.max_widths)
    recipe = dataclasses.replace(RECIPE, lr=1e18, warmup=0.0, epochs=5)
    widths = np.array(tiny_network.max_widths)
    with pytest.raises(TrainingError, match="learning rate"):
        train_structure(structure, tiny_network, widths, few, recipe, seed=0, checkpoint=tmp_path / "c", progress=quietly)
    assert not (tmp_path / "c").exists()


def test_the_rate_rises_then_falls_linearly_to_zero() -> None:
    recipe = Recipe(epochs=1, batch=512, lr=0.2, warmup=0.1)
    assert [recipe.rate(p) for p in (0, 0.05, 0.1, 0.55, 1)] == pytest.approx([0, 0.1, 0.2, 0.1, 0])
    assert dataclasses.replace(recipe, batch=128).rate(0.1) == pytest.approx(0.05)


def test_a_checkpoint_of_another_network_or_recipe_is_refused(few, tiny_network, tmp_path) -> None:
    train_pruningnet(new_pruningnet(tiny_network, 0), few, RECIPE, seed=0, checkpoint=tmp_path / "c", progress=quietly)
    other = latency.trace(load("tinynet:tiny", 7), (1, 3, 16, 16), align=4, name="tiny")
    for network, recipe, seed, named in (
        (other, RECIPE, 0, "network"),
        (tiny_network, dataclasses.replace(RECIPE, lr=0.1), 0, "recipe"),
        (tiny_network, RECIPE, 1, "seed"),
    ):
        with pytest.raises(CheckpointError, match=f"belongs to {named}"):
            train_pruningnet(new_pruningnet(network, 0), few, recipe, seed=seed, checkpoint=tmp_path / "c", progress=quietly)
    paths = {pruningnet_path(tmp_path, tiny_network, few, RECIPE, seed) for seed in (0, 0, 1)}
    assert len(paths) == 2


def test_checkpoints_are_data_and_must_be_whole(tmp_path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.ones(3)}, {"seed": 1}, 5)
    tensors, step = load_checkpoint(path, {"seed": 1})
    assert step == 5
    assert torch.equal(tensors["a"], torch.ones(3))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="not a whole"):
        load_checkpoint(path, {"seed": 1})
    torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="not a whole"):
        load_checkpoint(path, {"seed": 1})
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="not a Milliprune checkpoint"):
        load_checkpoint(path, {"seed": 1})


def test_an_unwritable_place_is_a_clear_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "c", {"a": torch.ones(3)}, {}, 0)
