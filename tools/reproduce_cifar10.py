"""python tools/reproduce_cifar10.py --data FOLDER: the paper's comparison on CIFAR-10, with every run in a file.

For each network and each latency budget: the uniformly scaled network, random search, MetaPruning guided by MACs and
MetaPruning guided by latency, all of the same predicted milliseconds, measured together, all trained by one recipe with
several seeds, from the PruningNet's weights on or, as in the paper, from scratch. Everything finished is kept under --runs,
so the command may be interrupted and goes on.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latency.errors import reported_by_command
from search import options
from search.config import check_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from pruning.pruningnet import PruningNet
    from search.experiment import Experiment
    from search.feasible import FeasibleSet
    from search.genetic import Candidate, Evolution

NETWORKS = ["pruning.cifar:mobilenet_v1", "pruning.cifar:mobilenet_v2", "pruning.cifar:resnet50"]
SPENT = (0.95, 0.8, 0.0)
"""Structures spend at least this share of their budget, the first that any structure fits: comparing accuracies needs equal
latencies."""

MACS_TRIES = 4
"""Searches after which MetaPruning by MACs takes what came nearest to the latency of the others."""

Option = typer.Option


def main(
    data: options.DataName = "cifar10",
    network: Annotated[list[str] | None, Option(help="May be given several times (default: all of pruning.cifar).")] = None,
    budget: Annotated[list[int] | None, Option(help="Per cent of the unpruned latency (default: 75, 50, 25).")] = None,
    device: options.DeviceName = "ort",
    images: options.TrainingImages = None,
    recipe: options.RecipeName = "focused",
    pruningnet_epochs: options.PruningNetEpochs = None,
    epochs: options.Epochs = 100,
    from_scratch: options.FromScratch = False,
    train_batch: options.TrainBatch = 128,
    lr: options.LearningRate = None,
    population: options.Population = 50,
    generations: options.Generations = 20,
    seeds: Annotated[int, Option(min=1, help="Trainings of each network.")] = 3,
    lut: options.Lut = Path("lut_data"),
    runs: options.Runs = Path("runs/experiments"),
    out: Annotated[Path, Option(help="File for all figures.")] = Path("results/cifar10.json"),
) -> None:
    """Print and write the table."""
    with reported_by_command():
        import numpy as np

        from pruning.data import load_data
        from pruning.hardware import compute_device
        from pruning.recipe import recipe_for
        from pruning.train import SUPERNETS
        from search.experiment import Experiment
        from search.feasible import FeasibleSet
        from search.genetic import Evolution
        from search.report import versions, write_json

        check_recipe(recipe)
        kind = SUPERNETS[recipe]
        pruningnet_epochs = pruningnet_epochs or kind.epochs(epochs)
        dataset = load_data(data).limited(images).to(compute_device())
        settings = {
            "data": dataset.name, "images": len(dataset.train), "recipe": recipe, "pruningnet_epochs": pruningnet_epochs,
            "epochs": epochs, "from_scratch": from_scratch, "train_batch": train_batch, "population": population,
            "generations": generations, "seeds": seeds,
        }  # fmt: skip
        rows: list[dict[str, Any]] = []
        for name in network or NETWORKS:
            experiment = Experiment.of(name, device, dataset, lut, runs)
            training = recipe_for(experiment.network, epochs, train_batch, lr=lr)
            for percent in budget or [75, 50, 25]:
                limit = experiment.unpruned_ms() * percent / 100
                within = FeasibleSet(experiment.network, latency_ms=limit, predictor=experiment.predictor)
                pruningnet, path = experiment.pruningnet(kind, replace(training, epochs=pruningnet_epochs), within, training)
                start, evolution = None if from_scratch else (pruningnet, path.stem), Evolution(population, generations)
                label = f"{percent}pc-{path.stem}-{population}x{generations}"
                for row in _chosen(experiment, pruningnet, evolution, percent, label):
                    begin = None if kind.warm and row["how"] == "unpruned" else start
                    accuracy = [experiment.trained(np.array(row["widths"]), training, seed, begin) for seed in range(seeds)]
                    row |= {"lr": training.lr, "test_accuracy": accuracy}
                    rows.append(row)
                    print(_line(row), flush=True)
                    content = {"settings": settings, "rows": rows, "device": experiment.device.fingerprint()}
                    write_json(out, content | {"versions": versions()})


def _chosen(
    experiment: Experiment, pruningnet: PruningNet, evolution: Evolution, percent: int, label: str
) -> list[dict[str, Any]]:
    """One row for each way of choosing a structure of `percent` of the unpruned latency.

    They are chosen at one predicted latency, so that what disturbs a measurement favours none, and measured in one session.
    """
    import numpy as np

    from pruning.evaluate import StructureEvaluator
    from search.finalists import measured_ms
    from search.genetic import Evolution
    from search.report import read_json, write_json
    from search.uniform import uniform_near

    path = experiment.runs / f"chosen-by-batch-loss-{label}.json"
    if path.exists():
        rows: list[dict[str, Any]] = read_json(path)["rows"]
        return rows

    def search(how: str, feasible: FeasibleSet, evolution: Evolution) -> Candidate:
        return experiment.searched(feasible, evaluate, evolution, path.with_suffix(f".{how}.journal"))

    network, limit = experiment.network, experiment.unpruned_ms() * percent / 100
    by_latency, evaluate = _spending(experiment, latency_ms=limit), StructureEvaluator(pruningnet, experiment.data)
    guided = search("latency", by_latency, evolution)
    drawn = search("random", by_latency, Evolution(evolution.evaluations, 1))
    spent = float(experiment.predict(np.array([guided.widths]))[0])
    uniform = uniform_near(network, experiment.predict, spent)[0]
    counted = _by_macs(experiment, search, evolution, spent, float(network.macs(uniform)))
    chosen = {
        "MetaPruning by latency": guided.widths,
        "MetaPruning by MACs": counted.widths,
        "random search": drawn.widths,
        "uniform": uniform,
        "unpruned": network.max_widths,
    }  # the dearest training last
    scores = [evaluate(np.array(widths)) for widths in chosen.values()]
    latency_ms = measured_ms(experiment.device, network, np.array(list(chosen.values())))
    rows = [
        {
            "network": network.name, "percent": percent, "budget_ms": limit, "how": how, "measured_ms": float(ms),
            "macs": network.macs(np.array(widths)), "params": network.params(np.array(widths)),
            "widths": [int(width) for width in widths], "subval_accuracy": score.accuracy, "subval_loss": score.loss,
        }
        for (how, widths), score, ms in zip(chosen.items(), scores, latency_ms, strict=True)
    ]  # fmt: skip
    write_json(path, {"rows": rows})
    return rows


def _spending(experiment: Experiment, **budget: float) -> FeasibleSet:
    """The structures within one budget that spend the largest share of SPENT that leaves any."""
    import numpy as np

    from search.budget import BudgetError
    from search.feasible import FeasibleSet

    ((name, most),) = budget.items()
    for share in SPENT:
        within: dict[str, Any] = {name: (share * most, most)}
        feasible = FeasibleSet(experiment.network, predictor=experiment.predictor, **within)
        with suppress(BudgetError):
            feasible.sample(1, np.random.default_rng(0))
            return feasible
    feasible.smallest()  # raises, with the smallest value that can be reached
    return feasible


def _by_macs(
    experiment: Experiment, search: Callable[..., Candidate], evolution: Evolution, latency_ms: float, amount: float
) -> Candidate:
    """The winner of a search that knows multiply-adds only, under the amount of them at which it takes `latency_ms`.

    That amount is found by searching: the first guess is the uniform network's.
    """
    import numpy as np

    tried: dict[float, Candidate] = {}
    for _ in range(MACS_TRIES):
        within = _spending(experiment, macs=amount)
        winner = search(f"macs-{amount / 1e6:.3g}M", within, evolution)
        ratio = float(experiment.predict(np.array([winner.widths]))[0]) / latency_ms
        tried[abs(math.log(ratio))] = winner
        if abs(ratio - 1) < 1 - SPENT[0]:
            break
        amount /= ratio
    return tried[min(tried)]


def _line(row: dict[str, Any]) -> str:
    accuracies = row["test_accuracy"]
    mean = sum(accuracies) / len(accuracies)
    return (
        f"| {row['network'].rpartition(':')[2]} | {row['percent']} % | {row['how']} | {mean:.2%} "
        f"({min(accuracies):.2%} … {max(accuracies):.2%}) | {row['measured_ms']:.4g} ms | {row['macs'] / 1e6:.3g} M MACs |"
    )


if __name__ == "__main__":
    typer.run(main)
