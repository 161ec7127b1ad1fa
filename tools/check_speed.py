"""python tools/check_speed.py: what a PruningNet's training step costs, and how fast structures are drawn.

Everything is timed in one run, taking turns; means over all steps are printed, since some do what others put off.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from latency.errors import MillipruneError, reported_by_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from latency.graph.network import Network

BUDGETS: dict[str, float | tuple[float, float]] = {"mobilenet_v1": 41e6, "mobilenet_v2": 43e6, "resnet50": (0.95e9, 1.05e9)}
"""The paper's tightest, in multiply-adds at 224 pixels."""

Option = typer.Option


def main(
    network: Annotated[str, Option(help="Network that is trained.")] = "mobilenet_v1",
    batch: Annotated[list[str] | None, Option(help="IMAGESxPIXELS (default: 64x32 and 16x224).")] = None,
    steps: Annotated[int, Option(min=3, help="Steps of each kind.")] = 36,
    threads: Annotated[int, Option(min=1, help="CPU threads.")] = 2,
    samples: Annotated[int, Option(min=1000, help="Structures drawn within each budget.")] = 200_000,
    out: Annotated[Path, Option(help="File for all figures.")] = Path("results/speed.json"),
) -> None:
    """Print seconds a step by generator, and structures a second by budget."""
    with reported_by_command():
        import torch

        from search.report import versions, write_json

        torch.set_num_threads(threads)
        rows = [_steps(network, shape, steps) for shape in batch or ["64x32", "16x224"]]
        draws = [_draws(name, samples) for name in BUDGETS]
        write_json(out, {"steps": rows, "draws": draws, "threads": threads, "versions": versions()})


def _steps(name: str, shape: str, steps: int) -> dict[str, Any]:
    """Mean seconds of a training step of each generator, and of the plain network of the same random widths: in its stride, and
    as long as its widths are new, when libraries prepare their kernels, as in every step of a PruningNet."""
    import numpy as np
    import torch

    from latency import trace
    from pruning.generators import GENERATORS
    from pruning.hardware import compute_device
    from pruning.networks import load
    from pruning.replay import WARM_UP
    from pruning.train import Supernet, new_pruningnet, new_structure, random_widths

    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", shape):
        raise MillipruneError(f"--batch {shape} given; expected IMAGESxPIXELS, for example 64x32.")
    batch, pixels = map(int, shape.split("x"))
    device, rng = compute_device(), np.random.default_rng(0)
    network = trace(load(name, 1000), (1, 3, pixels, pixels), align=8, name=name)
    images = torch.randn(batch, 3, pixels, pixels, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=device)
    supernets = {kind: new_pruningnet(network, Supernet(kind), 0).to(device) for kind in GENERATORS}
    trainings = {kind: _training(supernet) for kind, supernet in supernets.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in ("plain", "plain, new widths", *GENERATORS)}
    unrecorded = WARM_UP + 1 if images.is_cuda else 1
    for _ in tqdm(range(steps + unrecorded), desc=f"{name}, batch {batch} at {pixels}x{pixels}"):
        widths = random_widths(network, rng)
        plain, twin = (_training(new_structure(network, widths, 0).to(device).train()) for _ in range(2))
        # the first step of a module makes its buffers, that of the first one of its widths the kernels too
        first, second = plain(images, labels), twin(images, labels)
        seconds["plain"].append([plain(images, labels) for _ in range(unrecorded)][-1])
        seconds["plain, new widths"].append(seconds["plain"][-1] + first - second)
        for kind, supernet in supernets.items():
            seconds[kind].append(trainings[kind](images, labels, supernet.encoded(widths)))
    means = {kind: float(np.mean(times[unrecorded:])) for kind, times in seconds.items()}
    for kind in GENERATORS:
        ratio, new = (means[kind] / means[plain] for plain in ("plain", "plain, new widths"))
        print(
            f"{name}, batch {batch} at {pixels}x{pixels}: {kind} {means[kind]:.3f} s a step, {ratio:.2f} × plain, "
            f"{new:.2f} × plain of new widths"
        )
    return {"network": name, "batch": batch, "pixels": pixels, "steps": steps, "seconds": means}


def _training(module: nn.Module) -> Callable[..., float]:
    """Steps of its training, each of which gives the seconds it took: of images and labels, and of a PruningNet, widths."""
    import torch
    import torch.nn.functional as F

    from pruning.bank import banks
    from pruning.pruningnet import PruningNet
    from pruning.replay import Replayed

    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9, weight_decay=4e-5, fused=True)

    def learn(images: Tensor, labels: Tensor, *encoded: Tensor) -> Tensor:
        scores = module.scores(images, module.decoded(*encoded)) if isinstance(module, PruningNet) else module(images)
        loss = F.cross_entropy(scores, labels)
        loss.backward()
        return loss.detach()

    learned = Replayed(learn, module, backward=True)

    def step(*inputs: Tensor) -> float:
        began = time.perf_counter()
        loss = learned(*inputs)
        optimizer.step()
        for bank in banks(module).values():
            bank.step(1e-3, 0.9, 4e-5)
        optimizer.zero_grad(set_to_none=False)
        loss.item()
        if loss.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return step


def _draws(name: str, samples: int) -> dict[str, Any]:
    """Structures a second within the paper's tightest budget, on its unaligned grid."""
    import numpy as np

    from latency import trace
    from pruning.networks import load
    from search.feasible import FeasibleSet

    network: Network = trace(load(name), (1, 3, 224, 224), align=1, name=name)
    feasible = FeasibleSet(network, macs=BUDGETS[name])
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    feasible.sample(1, rng)
    prepared = time.perf_counter() - began
    began = time.perf_counter()
    drawn = feasible.sample(samples, rng)
    rate = samples / (time.perf_counter() - began)
    distinct = len(np.unique(drawn, axis=0))
    inside = bool(feasible.contains(drawn).all())
    print(
        f"{name}: {rate:,.0f} structures a second, {distinct} distinct, all in the budget: {inside}; ready in {prepared:.2f} s"
    )
    return {"network": name, "per_second": rate, "distinct": distinct, "inside": inside, "ready_s": prepared}


if __name__ == "__main__":
    typer.run(main)
