"""Training, of a PruningNet and of an ordinary structure alike: one loop, one recipe, checkpoints that go on exactly.

Everything random at step t is drawn from a generator seeded by (seed, t), so a resumed run takes the same steps as one
that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latency.errors import MillipruneError
from latency.network import Network
from pruning.checkpoint import load_checkpoint, save_checkpoint
from pruning.data import Dataset
from pruning.pruningnet import PruningNet

CHECKPOINT_SECONDS = 60.0
Progress = Callable[[int, float], object]
"""Called after every step with the number of steps done and the loss."""


class TrainingError(MillipruneError):
    """Training that cannot go on."""


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum, label smoothing and a learning rate that falls linearly to 0 (MetaPruning, section 4.1).

    `lr` is for a batch of 512 and scaled with the batch.
    """

    epochs: int
    batch: int = 64
    lr: float = 0.25
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    warmup: float = 0.05  # share of the steps in which the rate rises from 0

    def rate(self, progress: float) -> float:
        """Learning rate after a share `progress` of all steps."""
        peak = self.lr * self.batch / 512
        return peak * min(progress / self.warmup if self.warmup else 1.0, (1 - progress) / (1 - self.warmup))


def train_pruningnet(
    supernet: PruningNet, data: Dataset, recipe: Recipe, *, seed: int, checkpoint: Path, progress: Progress
) -> None:
    """Train on one random structure a step, every gene drawn uniformly from its choices (section 3.1)."""
    genes = supernet.network.genes

    def scores(images: Tensor, step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        result: Tensor = supernet(images, np.array([rng.choice(gene.choices) for gene in genes]))
        return result

    identity = training_identity("pruningnet", supernet.network, data, recipe, seed)
    _fit(supernet, scores, data, recipe, seed, checkpoint, identity, progress)


def train_structure(
    structure: nn.Module,
    network: Network,
    widths: np.ndarray,
    data: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path,
    progress: Progress,
) -> None:
    """Train an extracted structure from scratch; BN keeps running statistics as usual."""
    initialise(structure, seed)
    identity = training_identity("structure", network, data, recipe, seed) | {"widths": [int(w) for w in widths]}
    _fit(structure, lambda images, step: structure(images), data, recipe, seed, checkpoint, identity, progress)
    structure.eval()


def new_pruningnet(network: Network, seed: int) -> PruningNet:
    """A fresh PruningNet, drawn from `seed` without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PruningNet(network)


def pruningnet_path(folder: Path, network: Network, data: Dataset, recipe: Recipe, seed: int) -> Path:
    """Where the checkpoint of such a PruningNet belongs under `folder`: runs that may share one do."""
    identity = json.dumps(training_identity("pruningnet", network, data, recipe, seed), sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return folder / f"{network.name.replace(':', '.')}-{data.name}-{data.size}px-{digest}.safetensors"


def training_steps(data: Dataset, recipe: Recipe) -> int:
    """Steps of a whole training."""
    return recipe.epochs * (len(data.train) // min(recipe.batch, len(data.train)))


def training_identity(kind: str, network: Network, data: Dataset, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What a checkpoint belongs to; two runs with equal identities take the same steps."""
    genes = {gene.name: list(gene.choices) for gene in network.genes} if kind == "pruningnet" else {}
    return {
        "kind": kind,
        "network": f"{network.name} {network.signature}",
        "choices": genes,
        "data": f"{data.name}, {len(data.train)} images of {data.size} pixels",
        "recipe": asdict(recipe),
        "seed": seed,
    }


def initialise(module: nn.Module, seed: int) -> None:
    """He-normal convolutions and small linear layers, drawn from `seed` (He et al. 2015; as torchvision's networks)."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features), generator=generator)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.reset_parameters()
            continue
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _fit(
    module: nn.Module,
    scores: Callable[[Tensor, int], Tensor],
    data: Dataset,
    recipe: Recipe,
    seed: int,
    checkpoint: Path,
    identity: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Run the remaining steps; the checkpoint is written every minute, at the end and when interrupted."""
    batch = min(recipe.batch, len(data.train))
    per_epoch = len(data.train) // batch
    steps = training_steps(data, recipe)
    optimizer = torch.optim.SGD(
        module.parameters(), lr=recipe.rate(0), momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
    first = _resume(module, optimizer, checkpoint, identity) if checkpoint.exists() else 0
    progress(first, float("nan"))
    if first == steps:
        return
    module.train()
    done, saved = first, time.monotonic()
    with _saved_when_leaving(lambda: _save(module, optimizer if done < steps else None, checkpoint, identity, done)):
        for step in range(first, steps):
            generator = torch.Generator().manual_seed(_mixed(seed, step))
            index = _epoch_order(len(data.train), seed, step // per_epoch)[(step % per_epoch) * batch :][:batch]
            images = data.augmented(data.train.pixels[index], generator)
            loss = F.cross_entropy(scores(images, step), data.train.labels[index], label_smoothing=recipe.label_smoothing)
            if not math.isfinite(loss.item()):
                raise TrainingError(f"the loss became {loss.item()} at step {step}; lower the learning rate ({recipe.lr}).")
            optimizer.param_groups[0]["lr"] = recipe.rate((step + 0.5) / steps)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            done = step + 1
            progress(done, loss.item())
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                _save(module, optimizer, checkpoint, identity, done)
                saved = time.monotonic()


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
    return step


def _mixed(seed: int, step: int) -> int:
    """One seed from two, well spread."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)


def _epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_mixed(seed, 1_000_000_000 + epoch)))
