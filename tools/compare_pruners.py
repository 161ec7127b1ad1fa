"""python tools/compare_pruners.py --data FOLDER: ours against Torch-Pruning, from one trained network to one latency.

The unpruned network is trained once. Torch-Pruning cuts it, all layers judged together, by the magnitude of channels or by
their Taylor expansion, to the latency asked for; ours trains a PruningNet from it and searches. What others leave is trained
on for as many epochs as PruningNet and ours together. All structures have widths in the same multiples, none of them more
predicted milliseconds than allowed. Everything finished is kept under --runs.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latency.errors import MillipruneError, reported_by_command
from search import options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from torch import Tensor, nn

    from pruning.recipe import Recipe
    from search.experiment import Experiment

HALVINGS = 12
"""Of the pruning ratio, until it spends the latency."""

Option = typer.Option


def main(
    data: options.DataName = "cifar10",
    network: options.NetworkName = "mobilenet_v1",
    budget: Annotated[int, Option(min=1, max=99, help="Per cent of the unpruned latency.")] = 25,
    device: options.DeviceName = "ort",
    images: options.TrainingImages = None,
    pruningnet_epochs: options.PruningNetEpochs = None,
    epochs: options.Epochs = 30,
    train_batch: options.TrainBatch = 128,
    population: options.Population = 50,
    generations: options.Generations = 20,
    seeds: Annotated[int, Option(min=1, help="Trainings of each structure.")] = 2,
    lut: options.Lut = Path("lut_data"),
    runs: options.Runs = Path("runs/experiments"),
    out: Annotated[Path, Option(help="File for all figures.")] = Path("results/pruners.json"),
) -> None:
    """Print and write test accuracies and milliseconds. Needs pip install torch-pruning."""
    with reported_by_command():
        import numpy as np

        from pruning.data import load_data
        from pruning.hardware import compute_device
        from pruning.recipe import recipe_for
        from pruning.train import SUPERNETS
        from search.experiment import Experiment
        from search.finalists import measured_ms
        from search.genetic import Evolution
        from search.report import versions, write_json

        _require_torch_pruning()
        dataset = load_data(data).limited(images).to(compute_device())
        experiment = Experiment.of(network, device, dataset, lut, runs)
        recipe = recipe_for(experiment.network, epochs, train_batch)
        pruningnet_epochs = pruningnet_epochs or SUPERNETS["focused"].epochs(epochs)
        limit_ms = experiment.unpruned_ms() * budget / 100
        rows = []
        for how, origin, module, widths, length in (
            *_cut(experiment, recipe, limit_ms, epochs + pruningnet_epochs),
            *_found(experiment, recipe, limit_ms, pruningnet_epochs, Evolution(population, generations)),
        ):
            label = f"{how}, from {origin}"
            accuracies = [experiment.trained_on(copy.deepcopy(module), widths, length, seed, label) for seed in range(seeds)]
            rows.append({"how": how, "widths": widths.tolist(), "epochs": length.epochs, "test_accuracy": accuracies})
            print(f"{how}: {', '.join(f'{accuracy:.2%}' for accuracy in accuracies)}", flush=True)
        structures = np.array([row["widths"] for row in rows])
        for row, ms in zip(rows, measured_ms(experiment.device, experiment.network, structures), strict=True):
            row |= {"measured_ms": float(ms), "macs": experiment.network.macs(np.array(row["widths"]))}
            print(_line(row))
        unpruned = experiment.trained(np.array(experiment.network.max_widths), recipe, 0)
        print(f"unpruned: {unpruned:.2%}, {experiment.unpruned_ms():.4g} ms; allowed {limit_ms:.4g} ms")
        settings = {"network": network, "data": dataset.name, "images": len(dataset.train), "unpruned": unpruned}
        write_json(out, {"settings": settings | {"limit_ms": limit_ms}, "rows": rows, "versions": versions()})


def _require_torch_pruning() -> None:
    try:
        import torch_pruning  # noqa: F401
    except ImportError as error:
        raise MillipruneError(f"{error}; it is what we compare with: pip install torch-pruning") from error


Contestant = tuple[str, str, "nn.Module", "np.ndarray", "Recipe"]
"""How it was made and from what, the module to be trained on, its widths (int64[L]), and how."""


def _cut(experiment: Experiment, recipe: Recipe, limit_ms: float, epochs: int) -> Iterator[Contestant]:
    """What Torch-Pruning makes of the unpruned network, and its channels of most importance, as many in all layers alike."""
    import torch_pruning

    from pruning.evaluate import labelled_calibration_images
    from pruning.importance import IMAGES
    from pruning.train import new_structure
    from search.uniform import uniform_structures

    longer, network = replace(recipe, epochs=epochs), experiment.network
    weights, origin = experiment.start(recipe)
    images, labels = (one.cpu().contiguous() for one in labelled_calibration_images(experiment.data, IMAGES))
    for how, importance in (
        ("Torch-Pruning, magnitude", torch_pruning.importance.GroupMagnitudeImportance(p=2)),
        ("Torch-Pruning, Taylor", torch_pruning.importance.GroupTaylorImportance()),
    ):
        cut_by = partial(_cut_by, experiment, weights, importance, images, labels)
        yield how, origin, *_cut_to(experiment, cut_by, limit_ms), longer
    structures = uniform_structures(network)
    uniform = structures[experiment.predict(structures) <= limit_ms][-1]
    yield "uniform, the most important channels", origin, new_structure(network, uniform, 0, weights), uniform, longer


def _cut_to(experiment: Experiment, cut_by: Callable[[float], nn.Module], limit_ms: float) -> tuple[nn.Module, np.ndarray]:
    """The largest network within the limit that `cut_by` makes, given a pruning ratio, and its widths int64[L]."""
    from latency import trace

    low, high, found = 0.0, 1.0, None
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        module = cut_by(ratio)
        widths = _widths(experiment, module)
        if experiment.predictor.predict(experiment.network.onnx(widths)).latency_ms > limit_ms:
            low = ratio
        else:
            high, found = ratio, (module, widths)
    if found is None:
        raise MillipruneError(f"Torch-Pruning finds no network within {limit_ms:.4g} ms; use a larger --budget.")
    module, widths = found
    return trace(module, experiment.network.input_shape).module, widths  # trained in the form that all others have


def _cut_by(
    experiment: Experiment, weights: dict[str, Tensor], importance: Any, images: Tensor, labels: Tensor, ratio: float
) -> nn.Module:
    """What Torch-Pruning leaves of `weights`, with the gradients of `images` [N, C, H, W] and their labels int64[N]."""
    import torch
    import torch.nn.functional as F
    import torch_pruning

    from pruning.networks import load

    network = experiment.network
    module = load(network.name, experiment.data.classes, seed=0)
    module.load_state_dict(weights)
    classifier = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)][-1]
    pruner = torch_pruning.pruner.BasePruner(
        module.eval(), torch.zeros(network.input_shape), importance, global_pruning=True, pruning_ratio=ratio,
        max_pruning_ratio=0.95, round_to=network.align, ignored_layers=[classifier],
    )  # fmt: skip
    F.cross_entropy(module(images), labels).backward()
    pruner.step()
    module.zero_grad(set_to_none=True)
    return module


def _widths(experiment: Experiment, module: nn.Module) -> np.ndarray:
    import numpy as np

    network = experiment.network
    widths = np.array(network.max_widths)
    for layer in network.layers:
        for gene in layer.outputs.genes:
            widths[gene] = len(module.get_parameter(f"{layer.name}.weight"))
    return widths


def _found(
    experiment: Experiment, recipe: Recipe, limit_ms: float, pruningnet_epochs: int, evolution: Any
) -> Iterator[Contestant]:
    """What a search with a PruningNet finds that begins with the unpruned network."""
    import numpy as np

    from pruning.evaluate import StructureEvaluator
    from pruning.train import SUPERNETS, continued_structure
    from search.feasible import FeasibleSet
    from search.uniform import uniform_within

    within = FeasibleSet(experiment.network, latency_ms=limit_ms, predictor=experiment.predictor)
    kind, length = SUPERNETS["focused"], replace(recipe, epochs=pruningnet_epochs)
    pruningnet, path = experiment.pruningnet(kind, length, within, recipe)
    journal = path.with_name(f"{path.stem}-{evolution.population}x{evolution.generations}.journal")
    evaluate = StructureEvaluator(pruningnet, experiment.data)
    widths = np.array(experiment.searched(within, evaluate, evolution, journal, uniform_within(within)).widths)
    yield "ours", path.stem, continued_structure(pruningnet, widths), widths, recipe


def _line(row: dict[str, Any]) -> str:
    accuracies = row["test_accuracy"]
    return (
        f"| {row['how']} | {sum(accuracies) / len(accuracies):.2%} ({', '.join(f'{one:.2%}' for one in accuracies)}) | "
        f"{row['measured_ms']:.4g} ms | {row['macs'] / 1e6:.3g} M MACs |"
    )


if __name__ == "__main__":
    typer.run(main)
