"""python tools/train_pruningnet.py --network mobilenet_v1 --data digits: train a PruningNet ahead of a search."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latency.errors import reported_by_command
from search import options
from search.config import RunConfig, check_optimizer, check_recipe

if TYPE_CHECKING:
    from search.context import Context
    from search.feasible import FeasibleSet

Option = typer.Option
DEFAULTS = RunConfig()


def main(
    latency: options.Latency = None,
    macs: options.Macs = None,
    params: options.Params = None,
    network: options.NetworkName = DEFAULTS.network,
    data: options.DataName = DEFAULTS.data,
    image_size: options.ImageSize = None,
    batch: options.Batch = DEFAULTS.batch,
    device: options.DeviceName = DEFAULTS.device,
    threads: options.Threads = DEFAULTS.threads,
    precision: options.Precision = DEFAULTS.precision,
    align: options.Align = None,
    weights: options.Weights = None,
    pareto: options.Pareto = False,
    recipe: Annotated[
        str | None, Option(help="focused, paper, light or sandwich (default: focused with a budget, paper without).")
    ] = None,
    pruningnet_epochs: options.PruningNetEpochs = DEFAULTS.pruningnet_epochs,
    epochs: options.Epochs = DEFAULTS.epochs,
    train_batch: options.TrainBatch = DEFAULTS.train_batch,
    optimizer: options.Optimizer = None,
    lr: options.LearningRate = None,
    seed: Annotated[int, Option(min=0)] = DEFAULTS.seed,
    lut: options.Lut = Path("lut_data"),
    out: Annotated[Path, Option(help="Folder of PruningNets; searches under runs/ look here.")] = Path("runs/pruningnets"),
) -> None:
    """Train it, or go on where it stopped. A search with the same options, latency in milliseconds, finds it.

    On several GPUs: torchrun --nproc-per-node 8 tools/train_pruningnet.py …; every process draws its own structures.
    """
    with reported_by_command():
        focused = recipe == "focused" or (recipe is None and bool(latency or macs or params or pareto))
        config = RunConfig(
            latency, macs, params, network, data, image_size, device, threads, precision, batch, align, weights,
            recipe=recipe or ("focused" if focused else "paper"), pareto=pareto, pruningnet_epochs=pruningnet_epochs,
            epochs=epochs, train_batch=train_batch, optimizer=optimizer, lr=lr, seed=seed,
        )  # fmt: skip
        _check(config, focused)
        from pruning.evaluate import StructureEvaluator
        from pruning.workers import Workers
        from search.context import Context
        from search.progress import Reporter

        workers = Workers.joined()
        with workers.first_ahead():
            context = Context.of(config, out, out, lut, Reporter(silent=workers.rank > 0))
            feasible = _feasible(context) if focused else None
        pruningnet, path = context.pruningnet(feasible)
        if workers.rank:
            return
        evaluate, say = StructureEvaluator(pruningnet, context.data), context.reporter.say
        say(f"{path}")
        for scale in (1.0, 0.75, 0.5, 0.25):
            score = evaluate(context.network.nearest_widths(scale))
            say(f"  sub-validation accuracy at {scale:.2f} of all widths: {score.accuracy:.1%}")


def _check(config: RunConfig, focused: bool) -> None:
    """Raises MillipruneError where such a PruningNet could not be found by a search."""
    from search.budget import BudgetError, check_shared

    check_recipe(config.recipe)
    check_optimizer(config.optimizer)
    budgets = config.budgets()
    if focused and not budgets:
        raise BudgetError("--recipe focused given without a budget; expected the search's --latency, --macs or --params.")
    if focused:
        check_shared(budgets, "training ahead of a search")


def _feasible(context: Context) -> FeasibleSet:
    """What a search with these budgets chooses from; a quick table is measured first where there is none."""
    from search.feasible import FeasibleSet

    feasible = FeasibleSet.within(context.network, context.config.budgets(), context.predictor, math.nan)
    feasible.smallest()
    return feasible


if __name__ == "__main__":
    typer.run(main)
