"""Command-line options that several commands have, each stated once. Their defaults are the commands' own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from latency.devices import DEVICES

Latency = Annotated[str | None, Option(help="Latency budget per batch: 15ms, or 60% of the unpruned network.")]
Macs = Annotated[str | None, Option(help="Budget in multiply-adds an image: 150M, 0.95G..1.05G, 60%.")]
Params = Annotated[str | None, Option(help="Budget in parameters: 2M, 60%.")]

DeviceName = Annotated[
    str,
    Option(
        help=f"Where networks must be fast: {', '.join(DEVICES)}; one of them on another host, over ssh: trt@HOST or "
        "trt@HOST:PYTHON; or a table's folder in --lut, of a device elsewhere."
    ),
]
Threads = Annotated[int, Option(help="CPU threads that the device computes with.")]
Precision = Annotated[str, Option(help="fp32, or what else the device offers.")]
Lut = Annotated[Path, Option(help="Folder of latency tables.")]

NetworkName = Annotated[str, Option(help="mobilenet_v1, a torchvision model, or package.module:function.")]
InputSize = Annotated[int, Option(min=8, help="Side of the images in pixels.")]
Batch = Annotated[int, Option(min=1, help="Images in one batch of the deployed network.")]
NumClasses = Annotated[int, Option(min=1, help="Outputs of the classifier.")]
Align = Annotated[int | None, Option(min=1, help="Widths in multiples of this (default: as measured).")]

DataName = Annotated[str, Option(help="digits, cifar10, or a folder of images or *train.npz and *test.npz.")]
ImageSize = Annotated[int | None, Option(help="Side of the images in pixels (default 32; image folders 224).")]
TrainingImages = Annotated[int | None, Option(min=100, help="Training images (default: all).")]
Weights = Annotated[
    str | None, Option(help="Trained weights to start from: a state dict's file, or torchvision's, such as DEFAULT.")
]
Pareto = Annotated[bool, Option("--pareto", help="Find networks all along the front of accuracy against latency.")]
RecipeName = Annotated[str, Option(help="How PruningNet is trained: focused (within the budget), paper, light or sandwich.")]
FromScratch = Annotated[
    bool,
    Option("--from-scratch", help="Train final networks from scratch, as the paper does, not on from PruningNet's weights."),
]
Optimizer = Annotated[str | None, Option(help="sgd or adamw (default: adamw for networks with LayerNorm rather than BN).")]
LearningRate = Annotated[
    float | None,
    Option("--lr", min=1e-6, help="Peak learning rate for a step of 512 images (default: sgd 0.75, paper 0.25; adamw 0.006)."),
]
PruningNetEpochs = Annotated[
    int | None, Option(min=1, help="Epochs of PruningNet training (default: a quarter of --epochs; from scratch, as many).")
]
Epochs = Annotated[int, Option(min=1, help="Epochs of every network's own training, the unpruned one's too.")]
TrainBatch = Annotated[int, Option(min=2, help="Images in a training step, of all processes together.")]
Population = Annotated[int, Option(min=1, help="Structures in a generation.")]
Generations = Annotated[int, Option(min=1, help="Generations of each search.")]
Runs = Annotated[Path, Option(help="Folder of journals and checkpoints.")]
