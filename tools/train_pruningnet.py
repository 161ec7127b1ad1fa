"""python tools/train_pruningnet.py --network mobilenet_v1 --data digits: train a PruningNet ahead of a search."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from latency.errors import reported_by_command
from search import options
from search.config import RunConfig, check_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latency.devices import Device
    from latency.network import Network
    from search.budget import Budget
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
    recipe: Annotated[
        str | None, Option(help="focused, paper, light or sandwich (default: focused with a budget, paper without).")
    ] = None,
    epochs: Annotated[int, Option(min=1)] = DEFAULTS.pruningnet_epochs,
    train_batch: options.TrainBatch = DEFAULTS.train_batch,
    lr: options.LearningRate = DEFAULTS.lr,
    seed: Annotated[int, Option(min=0)] = DEFAULTS.seed,
    lut: options.Lut = Path("lut_data"),
    out: Annotated[Path, Option(help="Folder of PruningNets; searches under runs/ look here.")] = Path("runs/pruningnets"),
) -> None:
    """Train it, or go on where it stopped. A search with the same options, latency in milliseconds, finds it.

    On several GPUs: torchrun --nproc-per-node 8 tools/train_pruningnet.py …; every process draws its own structures.
    """
    with reported_by_command():
        from latency import open_device, trace
        from latency.alignment import alignment_of
        from pruning.data import load_data
        from pruning.evaluate import StructureEvaluator
        from pruning.fit import Recipe, training_steps
        from pruning.hardware import compute_device
        from pruning.networks import load
        from pruning.train import SUPERNETS, new_pruningnet, pruningnet_path, train_pruningnet
        from pruning.workers import Workers
        from search.focus import trained_on

        budgets = RunConfig(latency, macs, params).budgets()
        recipe = recipe or ("focused" if budgets else "paper")
        check_recipe(recipe)
        supernet = SUPERNETS[recipe]
        workers = Workers.joined()
        first = workers.rank == 0
        images = load_data(data, image_size).to(compute_device())
        shape = (batch, 3, images.size, images.size)
        opened = open_device(device, threads=threads, precision=precision, lut=lut)
        with workers.first_ahead():
            align = align or alignment_of(opened, lut)
            traced = trace(load(network, images.classes), shape, align=align, name=network)
            structures = None
            if supernet.focused:
                structures = trained_on(supernet, _feasible(traced, budgets, opened, lut), opened)
        steps = Recipe(epochs, train_batch, lr)
        pruningnet = new_pruningnet(traced, supernet, seed).to(compute_device())
        path = pruningnet_path(out, traced, supernet, images, steps, seed, structures=structures)
        total = training_steps(images, steps)
        with tqdm(total=total, desc="training PruningNet", dynamic_ncols=True, disable=not first) as meter:

            def update(step: int, loss: float) -> None:
                meter.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                meter.update(step - meter.n)

            train_pruningnet(
                pruningnet, supernet, images, steps, seed=seed, checkpoint=path, progress=update, structures=structures
            )
        if not first:
            return
        evaluate = StructureEvaluator(pruningnet, images)
        print(f"{path}")
        for scale in (1.0, 0.75, 0.5, 0.25):
            print(
                f"  sub-validation accuracy at {scale:.2f} of all widths: {evaluate(traced.nearest_widths(scale)).accuracy:.1%}"
            )


def _feasible(network: Network, budgets: Mapping[str, Budget], device: Device, lut: Path) -> FeasibleSet:
    """What a search with these budgets chooses from; a quick table is measured first where a latency needs one."""
    from latency.predictor import LatencyPredictor
    from search.budget import BudgetError, check_shared
    from search.feasible import FeasibleSet
    from search.measured import quick_table
    from search.progress import Reporter

    if not budgets:
        raise BudgetError("--recipe focused given without a budget; expected the search's --latency, --macs or --params.")
    check_shared(budgets, "training ahead of a search")
    feasible = FeasibleSet.within(network, budgets, LatencyPredictor(quick_table(device, network, lut, Reporter())), math.nan)
    feasible.smallest()
    return feasible


if __name__ == "__main__":
    typer.run(main)
