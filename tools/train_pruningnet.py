"""python tools/train_pruningnet.py --network mobilenet_v1 --data digits: train a PruningNet ahead of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from latency.errors import reported_by_command
from search import options

Option = typer.Option


def main(
    network: options.NetworkName = "mobilenet_v1",
    data: options.DataName = "digits",
    image_size: options.ImageSize = None,
    batch: options.Batch = 1,
    device: options.DeviceName = "ort",
    align: options.Align = None,
    recipe: options.RecipeName = "paper",
    epochs: Annotated[int, Option(min=1)] = 40,
    train_batch: options.TrainBatch = 64,
    seed: Annotated[int, Option(min=0)] = 0,
    lut: options.Lut = Path("lut_data"),
    out: Annotated[Path, Option(help="Folder of PruningNets; searches under runs/ look here.")] = Path("runs/pruningnets"),
) -> None:
    """Train it, or go on where it stopped. A search with the same options finds it.

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
        from search.config import check_recipe

        check_recipe(recipe)
        first = Workers.joined().rank == 0
        images = load_data(data, image_size).to(compute_device())
        shape = (batch, 3, images.size, images.size)
        align = align or alignment_of(open_device(device, lut=lut), lut)
        traced = trace(load(network, images.classes), shape, align=align, name=network)
        steps, supernet = Recipe(epochs, train_batch), SUPERNETS[recipe]
        pruningnet = new_pruningnet(traced, supernet, seed).to(compute_device())
        path = pruningnet_path(out, traced, supernet, images, steps, seed)
        total = training_steps(images, steps)
        with tqdm(total=total, desc="training PruningNet", dynamic_ncols=True, disable=not first) as meter:

            def update(step: int, loss: float) -> None:
                meter.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                meter.update(step - meter.n)

            train_pruningnet(pruningnet, supernet, images, steps, seed=seed, checkpoint=path, progress=update)
        if not first:
            return
        evaluate = StructureEvaluator(pruningnet, images)
        print(f"{path}")
        for scale in (1.0, 0.75, 0.5, 0.25):
            print(f"  sub-validation accuracy at {scale:.2f} of all widths: {evaluate(traced.nearest_widths(scale)):.1%}")


if __name__ == "__main__":
    typer.run(main)
