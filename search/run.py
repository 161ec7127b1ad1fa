"""python -m search.run --latency 15ms: the main job as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latency.errors import reported_by_command
from search import options
from search.config import RunConfig
from search.progress import Reporter
from search.report import OutputError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Option = typer.Option
DEFAULTS = RunConfig()


@app.command()
def main(
    latency: options.Latency = None,
    macs: options.Macs = None,
    params: options.Params = None,
    network: options.NetworkName = DEFAULTS.network,
    data: options.DataName = DEFAULTS.data,
    image_size: options.ImageSize = None,
    device: options.DeviceName = DEFAULTS.device,
    threads: options.Threads = DEFAULTS.threads,
    precision: options.Precision = DEFAULTS.precision,
    batch: options.Batch = DEFAULTS.batch,
    align: options.Align = DEFAULTS.align,
    weights: options.Weights = None,
    distill: Annotated[bool, Option("--distill", help="Train the pruned networks from the unpruned one's scores too.")] = False,
    recipe: options.RecipeName = DEFAULTS.recipe,
    from_scratch: options.FromScratch = False,
    pareto: options.Pareto = False,
    storage: Annotated[
        str | None, Option(help="Database for the search, to be worked on by several processes: postgresql+psycopg2://…")
    ] = None,
    population: options.Population = DEFAULTS.population,
    generations: options.Generations = DEFAULTS.generations,
    pruningnet_epochs: options.PruningNetEpochs = DEFAULTS.pruningnet_epochs,
    epochs: options.Epochs = DEFAULTS.epochs,
    train_batch: options.TrainBatch = DEFAULTS.train_batch,
    optimizer: options.Optimizer = None,
    lr: options.LearningRate = None,
    seed: Annotated[int, Option(min=0, help="The same seed gives the same result on the same machine.")] = DEFAULTS.seed,
    out: Annotated[Path | None, Option(help="Folder of the run (default: a new one under runs/).")] = None,
    lut: options.Lut = Path("lut_data"),
    resume: Annotated[bool, Option("--resume", help="Go on with the run in that folder.")] = False,
    quiet: Annotated[bool, Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Prune a network to a budget on a device: measure, search, measure again, train, export.

    On several GPUs: torchrun --nproc-per-node 8 -m search.run …; they train together, the first does all else.
    """
    with reported_by_command("Run the same command with --resume to go on."):
        config = RunConfig(
            latency, macs, params, network, data, image_size, device, threads, precision, batch, align,
            weights, distill, recipe, from_scratch, pareto, storage, population, generations, pruningnet_epochs, epochs,
            train_batch, optimizer, lr, seed,
        )  # fmt: skip
        config.check()
        from pruning.workers import Workers
        from search.pipeline import run  # torch and the rest load once the arguments are known to be good

        workers = Workers.joined()
        folder = workers.told(lambda: _folder(out, config, resume))
        run(config, folder, lut, Reporter(quiet, silent=workers.rank > 0))


def _folder(out: Path | None, config: RunConfig, resume: bool) -> Path:
    """Where the run lives: the folder given, or the newest (to resume) or next (to start) one of its name."""
    if out is not None:
        if not resume and (out / "run.json").exists():
            raise OutputError(f"'{out}' already holds a run; add --resume to go on with it, or choose another --out.")
        return out
    names = [Path("runs") / (config.slug + (f"-{number}" if number > 1 else "")) for number in range(1, 1000)]
    taken = [name for name in names if (name / "run.json").exists()]
    return taken[-1] if resume and taken else next(name for name in names if name not in taken)


if __name__ == "__main__":
    app()
