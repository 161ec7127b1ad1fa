"""python tools/train_pruningnet.py --network mobilenet_v1 --data digits: train a PruningNet ahead of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from latency.errors import reported_by_command

Option = typer.Option


def main(
    network: Annotated[str, Option(help="mobilenet_v1, a torchvision model, or package.module:function.")] = "mobilenet_v1",
    data: Annotated[str, Option(help="digits, cifar10, or a folder.")] = "digits",
    image_size: Annotated[int | None, Option(help="Side of the images in pixels (default 32; image folders 224).")] = None,
    batch: Annotated[int, Option(min=1, help="Images in one batch of the deployed network, as in the search.")] = 1,
    device: Annotated[str, Option(help="Of the search: it decides which multiples widths are.")] = "ort",
    align: Annotated[int | None, Option(min=1, help="Widths in multiples of this (default: as measured).")] = None,
    epochs: Annotated[int, Option(min=1)] = 40,
    train_batch: Annotated[int, Option(min=2, help="Images in a training step.")] = 64,
    seed: Annotated[int, Option(min=0)] = 0,
    lut: Annotated[Path, Option(help="Folder of latency tables.")] = Path("lut_data"),
    out: Annotated[Path, Option(help="Folder of PruningNets; searches under runs/ look here.")] = Path("runs/pruningnets"),
) -> None:
    """Train it, or go on where it stopped. A search with the same options finds it."""
    with reported_by_command():
        from latency import open_device, trace
        from latency.alignment import alignment_of
        from pruning.data import load_data
        from pruning.evaluate import StructureEvaluator
        from pruning.networks import load
        from pruning.train import Recipe, new_pruningnet, pruningnet_path, train_pruningnet, training_steps

        images = load_data(data, image_size)
        shape = (batch, 3, images.size, images.size)
        align = align or alignment_of(open_device(device), lut)
        traced = trace(load(network, images.classes), shape, align=align, name=network)
        recipe = Recipe(epochs, train_batch)
        supernet = new_pruningnet(traced, seed)
        path = pruningnet_path(out, traced, images, recipe, seed)
        with tqdm(total=training_steps(images, recipe), desc="training PruningNet", dynamic_ncols=True) as meter:

            def update(step: int, loss: float) -> None:
                meter.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                meter.update(step - meter.n)

            train_pruningnet(supernet, images, recipe, seed=seed, checkpoint=path, progress=update)
        evaluate = StructureEvaluator(supernet, images)
        print(f"{path}")
        for scale in (1.0, 0.75, 0.5, 0.25):
            print(f"  sub-validation accuracy at {scale:.2f} of all widths: {evaluate(traced.nearest_widths(scale)):.1%}")


if __name__ == "__main__":
    typer.run(main)
