"""python tools/check_ranking.py --data FOLDER: does a PruningNet rank structures as training from scratch does?

Random structures within one latency budget are trained from scratch, and ranked by PruningNets of every kind. Everything
finished is kept under --runs, so the command may be interrupted and goes on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latency.errors import reported_by_command
from search import options

if TYPE_CHECKING:
    import numpy as np

    from pruning.pruningnet import PruningNet
    from pruning.train import Supernet
    from search.experiment import Experiment

Option = typer.Option


def main(
    data: options.DataName = "cifar10",
    network: options.NetworkName = "pruning.cifar:mobilenet_v1_half",
    latency: Annotated[str, Option(help="Budget, as in a search.")] = "50%",
    device: options.DeviceName = "ort",
    structures: Annotated[int, Option(min=4, help="Random structures within the budget.")] = 20,
    images: options.TrainingImages = None,
    epochs: Annotated[int, Option(min=1, help="Epochs of training from scratch.")] = 8,
    seeds: Annotated[int, Option(min=1, help="Trainings from scratch of each structure.")] = 1,
    random_epochs: Annotated[int, Option(min=1, help="Epochs of a PruningNet on one random structure a step.")] = 18,
    sandwich_epochs: Annotated[int, Option(min=1, help="Epochs on the sandwich, which costs two to three times as much.")] = 8,
    train_batch: options.TrainBatch = 128,
    lr: options.LearningRate = None,
    lut: options.Lut = Path("lut_data"),
    runs: options.Runs = Path("runs/experiments"),
    out: Annotated[Path, Option(help="File for all figures.")] = Path("results/ranking.json"),
) -> None:
    """Print Kendall τ and Spearman ρ of every kind of PruningNet with training from scratch."""
    with reported_by_command():
        import numpy as np

        from pruning.data import load_data
        from pruning.generators import GENERATORS
        from pruning.hardware import compute_device
        from pruning.recipe import recipe_for
        from pruning.train import SUPERNETS, Supernet
        from search.budget import parse_budget
        from search.experiment import Experiment
        from search.feasible import FeasibleSet
        from search.report import read_json, versions, write_json

        dataset = load_data(data).limited(images).to(compute_device())
        experiment = Experiment.of(network, device, dataset, lut, runs)
        traced, budget = experiment.network, parse_budget(latency, "latency")
        feasible = FeasibleSet.within(traced, {"latency": budget}, experiment.predictor, experiment.unpruned_ms())
        drawn = feasible.sample(structures, np.random.default_rng(0))
        recipe = recipe_for(traced, epochs, train_batch, lr=lr)
        scratch = np.array([[experiment.trained(w, recipe, seed) for seed in range(seeds)] for w in drawn])
        kinds: list[dict[str, Any]] = [
            {"kind": "MACs", "rank_by": traced.macs(drawn).tolist()},
            {"kind": "parameters", "rank_by": traced.params(drawn).tolist()},
        ]
        kinds += [
            {"kind": f"training from scratch, seed {seed}", "rank_by": scratch[:, seed].tolist()} for seed in range(1, seeds)
        ]
        supernets = [Supernet(generator, sandwich) for sandwich in (False, True) for generator in GENERATORS]
        lengths = {SUPERNETS["focused"]: SUPERNETS["focused"].epochs(epochs)}  # as a search trains it
        lengths |= {one: sandwich_epochs if one.sandwich else random_epochs for one in supernets}
        for supernet, length in lengths.items():
            pruningnet, path = experiment.pruningnet(supernet, replace(recipe, epochs=length), feasible, recipe)
            seconds = float(read_json(path.with_suffix(".json"))["seconds"])
            kinds.append(_ranked(experiment, pruningnet, drawn, supernet) | {"seconds": seconds})
        for row in kinds:
            row |= _agreement(np.array(row["rank_by"]), scratch[:, 0] if "seed" in row["kind"] else scratch.mean(axis=1))
            print(_line(row), flush=True)
        settings = {
            "data": dataset.name, "images": len(dataset.train), "network": network, "latency": latency, "epochs": epochs,
            "random_epochs": random_epochs, "sandwich_epochs": sandwich_epochs, "train_batch": train_batch, "lr": recipe.lr,
        }  # fmt: skip
        rows = [{"widths": w.tolist(), "from_scratch": s.tolist()} for w, s in zip(drawn, scratch, strict=True)]
        write_json(out, {"settings": settings, "structures": rows, "kinds": kinds, "versions": versions()})


def _ranked(experiment: Experiment, pruningnet: PruningNet, drawn: np.ndarray, kind: Supernet) -> dict[str, Any]:
    """Sub-validation scores of structures int64[P, L] by a PruningNet of this kind, and how sure they are."""
    import numpy as np

    from pruning.evaluate import StructureEvaluator, recalibrated_score

    evaluate = StructureEvaluator(pruningnet, experiment.data)
    scores = [evaluate(widths) for widths in drawn]
    row = {
        "kind": str(kind),
        "largest": evaluate(experiment.network.nearest_widths(1.0)).accuracy,
        "rank_by": [-score.loss for score in scores],
        "accuracy": [score.accuracy for score in scores],
        "images_per_candidate": evaluate.images,
    }
    if kind.focused:  # the long protocol, of the default alone
        data, images = experiment.data, len(experiment.data.train)
        row |= {"images_thoroughly": images + len(data.subval)}
        thorough = [recalibrated_score(pruningnet, widths, data, images) for widths in drawn]
        short, long = (np.array([(s.loss, s.accuracy) for s in some]).T for some in (scores, thorough))
        by_loss, by_accuracy = (_agreement(*both)["kendall_tau"] for both in zip(short, long, strict=True))
        row |= {"tau_thoroughly": by_loss, "tau_thoroughly_by_accuracy": by_accuracy}
    return row


def _agreement(ranked: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    from scipy.stats import kendalltau, spearmanr

    return {"kendall_tau": float(kendalltau(ranked, truth)[0]), "spearman_rho": float(spearmanr(ranked, truth)[0])}


def _line(row: dict[str, Any]) -> str:
    text = f"{row['kind']:32} τ {row['kendall_tau']:5.2f}  ρ {row['spearman_rho']:5.2f}"
    if "seconds" not in row:
        return text
    mean = sum(row["accuracy"]) / len(row["accuracy"])
    text += f"  {row['seconds']:.0f} s, largest {row['largest']:.1%}, these {mean:.1%}"
    if "tau_thoroughly" not in row:
        return text
    return (
        f"{text}; τ {row['tau_thoroughly']:.2f} (by accuracy {row['tau_thoroughly_by_accuracy']:.2f}) between "
        f"{row['images_per_candidate']} and {row['images_thoroughly']} images"
    )


if __name__ == "__main__":
    typer.run(main)
