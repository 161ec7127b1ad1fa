"""Training on real digits: it learns, it resumes bit for bit, and its checkpoints fit only what they belong to."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import latency
from pruning.bank import banks
from pruning.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from pruning.data import Dataset
from pruning.evaluate import accuracy
from pruning.fit import TrainingError, fit
from pruning.networks import load
from pruning.recipe import OPTIMIZERS, AdamWRecipe, Recipe, recipe_for
from pruning.train import (
    SUPERNETS,
    Structures,
    new_pruningnet,
    new_structure,
    pruningnet_path,
    train_pruningnet,
    train_structure,
)

RECIPE = Recipe(epochs=2, batch=32)
PAPER = SUPERNETS["paper"]


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


@pytest.mark.parametrize(("kind", "stop"), [("paper", 1), ("paper", 4), ("sandwich", 9), ("adamw", 4)])
def test_a_pruningnet_resumes_bit_for_bit(kind: str, stop: int, few, tiny_network, tmp_path) -> None:
    recipe = AdamWRecipe(epochs=2, batch=32) if kind == "adamw" else RECIPE
    kind = SUPERNETS.get(kind, PAPER)
    straight, broken, resumed = (new_pruningnet(tiny_network, kind, 0) for _ in range(3))
    train_pruningnet(straight, kind, few, recipe, seed=3, checkpoint=tmp_path / "a", progress=quietly)
    with pytest.raises(KeyboardInterrupt):
        train_pruningnet(broken, kind, few, recipe, seed=3, checkpoint=tmp_path / "b", progress=interrupted_at(stop))
    steps: list[int] = []
    train_pruningnet(
        resumed, kind, few, recipe, seed=3, checkpoint=tmp_path / "b", progress=lambda done, loss: steps.append(done)
    )
    assert steps == list(range(stop, 11))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_pruningnet_is_trained_on_the_structures_it_is_given(few, tiny_network, tmp_path) -> None:
    """And goes on to the same weights, which are not those of one that was trained on all."""
    drawn: list[tuple[int, ...]] = []

    def draw(rng: np.random.Generator) -> np.ndarray:
        widths = tiny_network.nearest_widths(rng.choice([0.25, 0.5]))
        drawn.append(tuple(widths))
        return widths

    kind, structures = SUPERNETS["focused"], Structures(draw, {"widths": "a quarter or half"})
    straight, resumed, other = (new_pruningnet(tiny_network, kind, 0) for _ in range(3))
    facts = {"seed": 3, "progress": quietly}
    train_pruningnet(straight, kind, few, RECIPE, checkpoint=tmp_path / "a", structures=structures, **facts)
    assert len(drawn) == 10
    assert set(drawn) == {tuple(tiny_network.nearest_widths(share)) for share in (0.25, 0.5)}
    with pytest.raises(KeyboardInterrupt):
        train_pruningnet(resumed, kind, few, RECIPE, seed=3, checkpoint=tmp_path / "b", structures=structures,
                         progress=interrupted_at(4))  # fmt: skip
    train_pruningnet(resumed, kind, few, RECIPE, checkpoint=tmp_path / "b", structures=structures, **facts)
    train_pruningnet(other, kind, few, RECIPE, checkpoint=tmp_path / "c", **facts)
    first, second, third = (one.state_dict()["generators.stem/0.base"] for one in (straight, resumed, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    with pytest.raises(CheckpointError, match="belongs to structures"):
        train_pruningnet(other, kind, few, RECIPE, checkpoint=tmp_path / "a", **facts)
    paths = {pruningnet_path(tmp_path, tiny_network, kind, few, RECIPE, 0, "", one) for one in (None, structures)}
    assert len(paths) == 2


def test_banks_are_trained_too_and_settled_in_the_end(few, tiny_network, tmp_path) -> None:
    trained, fresh = new_pruningnet(tiny_network, PAPER, 0), new_pruningnet(tiny_network, PAPER, 0)
    train_pruningnet(trained, PAPER, few, RECIPE, seed=0, checkpoint=tmp_path / "c", progress=quietly)
    before = banks(fresh)
    assert before
    for name, bank in banks(trained).items():
        assert bank.count == 0
        moved = (bank.values - before[name].values).abs().max()
        assert 1e-5 < moved < 1, name


def test_a_structure_resumes_bit_for_bit_and_a_finished_one_is_loaded(few, tiny_network, tmp_path) -> None:
    widths = np.array(tiny_network.max_widths)
    straight, resumed, again = (new_structure(tiny_network, widths, 0) for _ in range(3))
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
    structure = new_structure(tiny_network, np.array(tiny_network.max_widths), 0)
    recipe = Recipe(epochs=8, batch=32)
    widths = np.array(tiny_network.max_widths)
    train_structure(structure, tiny_network, widths, digits, recipe, seed=0, checkpoint=tmp_path / "c", progress=quietly)
    assert accuracy(structure, digits.test, digits) > 0.85


def test_structures_start_from_trained_weights_where_given(tiny_network) -> None:
    state = tiny_network.module.state_dict()
    widths = np.array([gene.choices[0] for gene in tiny_network.genes])
    structure = new_structure(tiny_network, widths, 0, state)
    for name, tensor in structure.state_dict().items():
        if name in tiny_network.tensors:
            assert torch.equal(tensor, state[name][tiny_network.kept(name, widths)]), name
    assert not torch.equal(
        new_structure(tiny_network, widths, 0).state_dict()["stem.0.weight"], structure.state_dict()["stem.0.weight"]
    )


def test_a_pupil_takes_after_its_teacher(few, tiny_network, tmp_path) -> None:
    """A teacher that calls everything a 3 pulls its pupil there; without it, the labels decide."""
    full = np.array(tiny_network.max_widths)
    teacher = new_structure(tiny_network, full, 0).eval()
    with torch.no_grad():
        teacher.classifier.bias[3] = 50.0
    shares = []
    for taught in (None, teacher):
        pupil = new_structure(tiny_network, full, 1)
        train_structure(
            pupil, tiny_network, full, few, Recipe(epochs=6, batch=32), seed=0, checkpoint=tmp_path / str(taught is None),
            progress=quietly, teacher=taught,
        )  # fmt: skip
        shares.append(pupil(few.normalised(few.train.pixels)).softmax(1)[:, 3].mean().item())
    assert shares[0] < 0.25
    assert shares[1] > shares[0] + 0.15


def test_a_loss_that_explodes_stops_with_advice(few, tiny_network, tmp_path) -> None:
    structure = new_structure(tiny_network, np.array(tiny_network.max_widths), 0)
    recipe = dataclasses.replace(RECIPE, lr=1e18, warmup=0.0, epochs=5)
    widths = np.array(tiny_network.max_widths)
    with pytest.raises(TrainingError, match=r"--lr 1e\+18"):
        train_structure(structure, tiny_network, widths, few, recipe, seed=0, checkpoint=tmp_path / "c", progress=quietly)
    assert not (tmp_path / "c").exists()


def test_the_rate_rises_then_falls_linearly_to_zero() -> None:
    recipe = Recipe(epochs=1, batch=512, lr=0.2, warmup=0.1)
    assert [recipe.rate(p) for p in (0, 0.05, 0.1, 0.55, 1)] == pytest.approx([0, 0.1, 0.2, 0.1, 0])
    assert dataclasses.replace(recipe, batch=128).rate(0.1) == pytest.approx(0.05)


def test_adamw_steps_as_it_is_published_and_decays_matrices_alone(few, tmp_path) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, on gradients that stay what they are."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    torch.nn.init.uniform_(module[1].weight)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def backward(images: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, -0.3)
        return torch.zeros(())

    recipe = AdamWRecipe(epochs=5, batch=32, lr=0.04, weight_decay=0.5)
    fit(module, backward, few, recipe, seed=0, checkpoint=tmp_path / "c", identity={}, progress=quietly)
    steps = recipe.epochs * (len(few.train) // 32)
    for name, parameter in module.named_parameters():
        expected = before[name]
        for step in range(steps):
            rate = recipe.rate((step + 0.5) / steps)
            expected = expected * (1 - rate * 0.5 * (name == "0.weight")) + rate * 0.3 / (0.3 + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected)


def test_adamws_rate_grows_with_the_root_of_the_batch() -> None:
    assert AdamWRecipe(epochs=1, batch=128, lr=0.2, warmup=0.1).rate(0.55) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tinynet:tiny", Recipe),
        ("tinynet:plain", Recipe),
        ("tinynet:classed", AdamWRecipe),
        ("tinynet:tiny_convnext", AdamWRecipe),
    ],
)
def test_what_has_layernorm_rather_than_bn_is_trained_by_adamw_unless_asked_otherwise(name: str, kind: type[Recipe]) -> None:
    network = latency.trace(load(name, 10), (1, 3, 32, 32))
    assert type(recipe_for(network, epochs=3)) is kind
    other = {Recipe: "adamw", AdamWRecipe: "sgd"}[kind]
    assert recipe_for(network, 3, 64, other, 0.5) == OPTIMIZERS[other](epochs=3, lr=0.5)


def test_the_default_has_generators_that_any_optimiser_trains(tiny_network) -> None:
    assert not list(banks(new_pruningnet(tiny_network, SUPERNETS["focused"], 0)))


def test_a_linear_layer_of_a_thousand_inputs_takes_smaller_steps_and_nothing_else_does(few, tmp_path) -> None:
    class Three(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.few, self.many = torch.nn.Conv2d(1024, 2, 1), torch.nn.Linear(256, 2), torch.nn.Linear(1024, 2)

    module = Three()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def backward(images: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        return torch.zeros(())

    recipe = Recipe(epochs=1, batch=len(few.train), weight_decay=0.0)
    fit(module, backward, few, recipe, seed=0, checkpoint=tmp_path / "c", identity={}, progress=quietly)
    for name, parameter in module.named_parameters():
        share = 0.25 if name == "many.weight" else 1.0
        torch.testing.assert_close(before[name] - parameter, torch.full_like(parameter, share * recipe.rate(0.5)))


def test_a_checkpoint_of_another_network_or_recipe_is_refused(few, tiny_network, tmp_path) -> None:
    train_pruningnet(
        new_pruningnet(tiny_network, PAPER, 0), PAPER, few, RECIPE, seed=0, checkpoint=tmp_path / "c", progress=quietly
    )
    other = latency.trace(load("tinynet:tiny", 7), (1, 3, 16, 16), align=4, name="tiny")
    for network, kind, recipe, seed, named in (
        (other, PAPER, RECIPE, 0, "network"),
        (tiny_network, SUPERNETS["sandwich"], RECIPE, 0, "supernet"),
        (tiny_network, PAPER, dataclasses.replace(RECIPE, lr=0.1), 0, "recipe"),
        (tiny_network, PAPER, RECIPE, 1, "seed"),
    ):
        with pytest.raises(CheckpointError, match=f"belongs to {named}"):
            train_pruningnet(
                new_pruningnet(network, kind, 0), kind, few, recipe, seed=seed, checkpoint=tmp_path / "c", progress=quietly
            )
    facts = ((0, ""), (0, ""), (1, ""), (0, "digest of weights"))
    assert len({pruningnet_path(tmp_path, tiny_network, PAPER, few, RECIPE, *fact) for fact in facts}) == 3


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
