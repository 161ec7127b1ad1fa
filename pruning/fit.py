"""The training loop, of a PruningNet and of an ordinary structure alike: one optimiser, checkpoints that go on exactly.

Everything random at step t is drawn from a generator seeded by (seed, t), so a resumed run takes the same steps as one
that was never interrupted. Under torchrun every process takes its own part of each batch and gradients are averaged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from pruning.recipe import Recipe
from pruning.workers import Workers

CHECKPOINT_SECONDS = 60.0

STATES = {"momentum": "momentum_buffer", "mean": "exp_avg", "square": "exp_avg_sq", "steps": "step"}
"""What checkpoints call the tensors that optimisers keep for each parameter."""

Progress = Callable[[int, float], object]
"""Called after every step with the number of steps done and the loss."""
Backward = Callable[[Tensor, Tensor, int], Tensor]
"""Called with images [N, C, H, W], labels int64[N] and the step: leaves gradients in the parameters, returns the loss []."""


class TrainingError(MillipruneError):
    """Training that cannot go on."""


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
    optimizer = recipe.optimizer(module)
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
            middle = (step + 0.5) / steps
            rate = recipe.rate(middle)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
            optimizer.step()
            for bank in late:
                bank.step(*recipe.of_banks(middle))
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
    """Weights, and while training goes on what the optimiser keeps too."""
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    if optimizer is not None:
        for name, bank in banks(module).items():
            tensors |= {f"bank.{name}.{key}": tensor for key, tensor in bank.training_state().items()}
        for name, parameter in module.named_parameters():
            kept = optimizer.state[parameter]
            tensors |= {f"{state}.{name}": kept[key] for state, key in STATES.items() if key in kept}
    save_checkpoint(checkpoint, tensors, identity, step)


def _resume(module: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, identity: Mapping[str, Any]) -> int:
    tensors, step = load_checkpoint(checkpoint, identity)
    module.load_state_dict({name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")})
    for name, parameter in module.named_parameters():
        for state, key in STATES.items():
            if f"{state}.{name}" in tensors:
                optimizer.state[parameter][key] = _beside(parameter, tensors[f"{state}.{name}"])
    for name, bank in banks(module).items():
        prefix = f"bank.{name}."
        bank.load_training_state({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
    return step


def _beside(parameter: Tensor, state: Tensor) -> Tensor:
    """`state` on the parameter's device; in memory as that lies (channels last, say), since fused optimisers walk it."""
    return torch.empty_like(parameter).copy_(state) if state.shape == parameter.shape else state.to(parameter.device)


def mixed(*numbers: int) -> int:
    """One seed from several, well spread."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
