"""python -m search.run --latency 15ms: the main job as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latency.devices import DEVICES
from latency.errors import reported_by_command
from search.config import RunConfig
from search.progress import Reporter
from search.report import OutputError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Option = typer.Option
DEFAULTS = RunConfig()


@app.command()
def main(
    latency: Annotated[str | None, Option(help="Latency budget per batch: 15ms, or 60% of the unpruned network.")] = None,
    macs: Annotated[str | None, Option(help="Budget in multiply-adds an image: 150M, 0.95G..1.05G, 60%.")] = None,
    params: Annotated[str | None, Option(help="Budget in parameters: 2M, 60%.")] = None,
    network: Annotated[str, Option(help="mobilenet_v1, a torchvision model, or package.module:function.")] = DEFAULTS.network,
    data: Annotated[str, Option(help="digits, cifar10, or a folder of images or *train.npz and *test.npz.")] = DEFAULTS.data,
    image_size: Annotated[int | None, Option(help="Side of the images in pixels (default 32; image folders 224).")] = None,
    device: Annotated[str, Option(help=f"Where it must be fast: {', '.join(DEVICES)}.")] = DEFAULTS.device,
    threads: Annotated[int, Option(help="CPU threads that the device computes with.")] = DEFAULTS.threads,
    precision: Annotated[str, Option(help="fp32, or what else the device offers.")] = DEFAULTS.precision,
    batch: Annotated[int, Option(min=1, help="Images in one batch of the deployed network.")] = DEFAULTS.batch,
    align: Annotated[int | None, Option(min=1, help="Widths in multiples of this (default: as measured).")] = DEFAULTS.align,
    weights: Annotated[
        str | None, Option(help="Trained weights to start from: a state dict's file, or torchvision's, such as DEFAULT.")
    ] = None,
    distill: Annotated[bool, Option("--distill", help="Train the pruned networks from the unpruned one's scores too.")] = False,
    recipe: Annotated[
        str, Option(help="How PruningNet is trained: paper, light (cheaper generators) or sandwich.")
    ] = DEFAULTS.recipe,
    pareto: Annotated[bool, Option("--pareto", help="Find networks all along the front of accuracy against latency.")] = False,
    storage: Annotated[
        str | None, Option(help="Database for the search, to be worked on by several processes: postgresql+psycopg2://…")
    ] = None,
    population: Annotated[int, Option(min=1, help="Structures in a generation.")] = DEFAULTS.population,
    generations: Annotated[int, Option(min=1, help="Generations of the genetic search.")] = DEFAULTS.generations,
    pruningnet_epochs: Annotated[int, Option(min=1, help="Epochs of PruningNet training.")] = DEFAULTS.pruningnet_epochs,
    epochs: Annotated[int, Option(min=1, help="Epochs of the final training from scratch.")] = DEFAULTS.epochs,
    train_batch: Annotated[int, Option(min=2, help="Images in a training step.")] = DEFAULTS.train_batch,
    seed: Annotated[int, Option(min=0, help="The same seed gives the same result on the same machine.")] = DEFAULTS.seed,
    out: Annotated[Path | None, Option(help="Folder of the run (default: a new one under runs/).")] = None,
    lut: Annotated[Path, Option(help="Folder of latency tables.")] = Path("lut_data"),
    resume: Annotated[bool, Option("--resume", help="Go on with the run in that folder.")] = False,
    quiet: Annotated[bool, Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Prune a network to a budget on a device: measure, search, measure again, train, export."""
    with reported_by_command("Run the same command with --resume to go on."):
        config = RunConfig(
            latency, macs, params, network, data, image_size, device, threads, precision, batch, align,
            weights, distill, recipe, pareto, storage, population, generations, pruningnet_epochs, epochs, train_batch, seed,
        )  # fmt: skip
        config.check()
        from search.pipeline import run  # torch and the rest load once the arguments are known to be good

        run(config, _folder(out, config, resume), lut, Reporter(quiet))


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
