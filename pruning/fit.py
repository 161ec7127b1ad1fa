"""The training loop, of a PruningNet and of an ordinary structure alike: one optimiser, checkpoints that go on exactly.

Everything random at step t is drawn from a generator seeded by (seed, t), so a resumed run takes the same steps as one
that was never interrupted. Under torchrun every process takes its own part of each batch and gradients are averaged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latency.errors import MillipruneError
from pruning.bank import banks
from pruning.checkpoint import load_checkpoint, save_checkpoint
from pruning.data import Dataset
from pruning.workers import Workers

CHECKPOINT_SECONDS = 60.0

LABEL_SMOOTHING = 0.1
"""MetaPruning's, in training and when structures are ranked."""

LINEAR_INPUTS = 256
"""As many inputs let a linear layer keep pace with all else."""

Progress = Callable[[int, float], object]
"""Called after every step with the number of steps done and the loss."""
Backward = Callable[[Tensor, Tensor, int], Tensor]
"""Called with images [N, C, H, W], labels int64[N] and the step: leaves gradients in the parameters, returns the loss []."""


class TrainingError(MillipruneError):
    """Training that cannot go on."""


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum, label smoothing and a learning rate that falls linearly to 0 (MetaPruning, section 4.1).

    `batch` is of all processes together. `lr` is for a batch of 512 and scaled with the batch.
    """

    epochs: int
    batch: int = 64
    lr: float = 0.25
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = LABEL_SMOOTHING
    warmup: float = 0.05  # share of the steps in which the rate rises from 0

    def rate(self, progress: float) -> float:
        """Learning rate after a share `progress` of all steps."""
        peak = self.lr * self.batch / 512
        return peak * min(progress / self.warmup if self.warmup else 1.0, (1 - progress) / (1 - self.warmup))


def training_steps(data: Dataset, recipe: Recipe) -> int:
    """Steps of a whole training."""
    return recipe.epochs * (len(data.train) // min(recipe.batch, len(data.train)))


def fit(
    module: nn.Module,
    backward: Backward,
    data: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path,
    identity: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Run the remaining steps; the checkpoint is written every minute, at the end and when interrupted.

    Raises:
        TrainingError: the loss is not finite any more.
        CheckpointError: there is a checkpoint of something else.
    """
    workers = Workers.joined()
    steps, late = training_steps(data, recipe), banks(module).values()
    optimizer = torch.optim.SGD(
        list(_rated(module)), lr=0.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
    first = _resume(module, optimizer, checkpoint, identity) if checkpoint.exists() else 0
    progress(first, float("nan"))
    if first == steps:
        return
    module.train()
    workers.begin_alike(module)
    done, saved = first, time.monotonic()

    def save() -> None:
        if done == steps:
            for bank in late:
                bank.settle()
        if workers.rank == 0:
            _save(module, optimizer if done < steps else None, checkpoint, identity, done)

    with _saved_when_leaving(save):
        images, labels = _batch(data, recipe, seed, first, workers)
        for step in range(first, steps):
            loss = backward(images, labels, step)
            workers.average_gradients(module)
            rate = recipe.rate((step + 0.5) / steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
            optimizer.step()
            for bank in late:
                bank.step(rate, recipe.momentum, recipe.weight_decay)
            optimizer.zero_grad(set_to_none=False)
            done = step + 1
            images, labels = _batch(data, recipe, seed, min(done, steps - 1), workers)
            lost = loss.item()  # a GPU is waited for once a step, when all else is under way
            if not math.isfinite(lost):
                raise TrainingError(f"the loss became {lost} at step {step} with --lr {recipe.lr:g}; use a lower one.")
            progress(done, lost)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save()
                saved = time.monotonic()
        workers.average_statistics(module)


def _rated(module: nn.Module) -> Iterator[dict[str, Any]]:
    """The parameters as groups for an optimiser, each with its `share` of the learning rate.

    A step changes what a linear layer gives by rate × |input|², and its inputs may be a thousand: beyond LINEAR_INPUTS their
    share falls with their number (as of output layers under SGD: Yang et al. 2022, arXiv 2203.03466, table 3).
    """
    shared: dict[float, list[nn.Parameter]] = {}
    for parameter in module.parameters():
        share = min(1.0, LINEAR_INPUTS / parameter.shape[1]) if parameter.ndim == 2 else 1.0
        shared.setdefault(share, []).append(parameter)
    for share, parameters in shared.items():
        yield {"params": parameters, "share": share}


def _batch(data: Dataset, recipe: Recipe, seed: int, step: int, workers: Workers) -> tuple[Tensor, Tensor]:
    """This process's part of the batch of `step`: augmented images and labels, where the data are."""
    count = len(data.train)
    batch = min(recipe.batch, count)
    epoch, position = divmod(step, count // batch)
    part = data.train.subset(_order(count, seed, epoch)[position * batch :][:batch][workers.rank :: workers.size])
    generator = torch.Generator().manual_seed(mixed(seed, step, *workers.salt))
    return data.augmented(part.pixels, generator), part.labels


@lru_cache(maxsize=1)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    """int64[count]: the training images in the order in which an epoch shows them."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed(seed, 1_000_000_000 + epoch)))


@contextmanager
def _saved_when_leaving(save: Callable[[], None]) -> Iterator[None]:
    """Save after the last step, and on ctrl-C; not after an error, which may have spoilt the weights."""
    try:
        yield
    except KeyboardInterrupt:
        save()
        raise
    save()


def _save(
    module: nn.Module, optimizer: torch.optim.Optimizer | None, checkpoint: Path, identity: Mapping[str, Any], step: int
) -> None:
    """Weights, and while training goes on the momentum too."""
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    if optimizer is not None:
        for name, bank in banks(module).items():
            tensors |= {f"bank.{name}.{key}": tensor for key, tensor in bank.training_state().items()}
        for name, parameter in module.named_parameters():
            if "momentum_buffer" in optimizer.state[parameter]:
                tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
    save_checkpoint(checkpoint, tensors, identity, step)


def _resume(module: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, identity: Mapping[str, Any]) -> int:
    tensors, step = load_checkpoint(checkpoint, identity)
    module.load_state_dict({name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")})
    for name, parameter in module.named_parameters():
        if f"momentum.{name}" in tensors:
            # the fused optimiser walks memory, so the buffer must lie as the parameter does (channels last, say)
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
    for name, bank in banks(module).items():
        prefix = f"bank.{name}."
        bank.load_training_state({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
    return step


def mixed(*numbers: int) -> int:
    """One seed from several, well spread."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
