"""What is trained and how: a PruningNet on random structures, or one structure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from latency.graph.network import Network
from pruning.data import Dataset
from pruning.extract import extract
from pruning.fit import Progress, fit
from pruning.initialise import initialise, restore_scale
from pruning.normalise import gains_bn, normalised
from pruning.pruningnet import PruningNet
from pruning.recipe import Recipe
from pruning.replay import Replayed
from pruning.workers import Workers


@dataclass(frozen=True)
class Supernet:
    """How a PruningNet generates weights (`pruning.generators.GENERATORS`), and which structures it trains on in a step.

    `sandwich`: the largest from the labels, then the smallest and a random one from the largest's scores (the sandwich rule
    with inplace distillation, Yu and Huang, ICCV 2019, section 3); otherwise one random structure (MetaPruning, section 3.1).
    `focused`: on structures within the budget only, the ones that a search can choose. `warm`: begins with what the unpruned
    network has learnt.
    """

    generator: str
    sandwich: bool = False
    focused: bool = False
    warm: bool = False

    def epochs(self, own: int) -> int:
        """How many it is trained for by default, where every network is for `own`.

        One that begins warm learns within few how structures rank, and what they need on top of it they learn better alone.
        """
        return max(1, own // 4) if self.warm else own

    def __str__(self) -> str:
        return self.generator + ", sandwich" * self.sandwich + ", focused" * self.focused + ", warm" * self.warm


SUPERNETS = {
    "focused": Supernet("low-rank", focused=True, warm=True),
    "paper": Supernet("full"),
    "light": Supernet("low-rank"),
    "sandwich": Supernet("full", sandwich=True),
}
"""By the name of the recipe. tools/check_ranking.py compares them: see the README."""


@dataclass(frozen=True)
class Structures:
    """Those a PruningNet is trained on: `draw` gives int64[L] from a random generator, `within` tells trainings apart."""

    draw: Callable[[np.random.Generator], np.ndarray]
    within: Mapping[str, Any] = field(default_factory=dict)


def all_structures(network: Network) -> Structures:
    """Every gene uniformly one of its choices (MetaPruning, section 3.1)."""
    return Structures(partial(random_widths, network))


def new_pruningnet(network: Network, supernet: Supernet, seed: int, weights: Mapping[str, Tensor] | None = None) -> PruningNet:
    """A fresh PruningNet, drawn from `seed` without touching the global generator, or one that starts from `weights`, those of
    the `normalised` network."""
    network = normalised(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = new_structure(network, np.array(network.max_widths), seed, weights)
        pruningnet = PruningNet(network, dict(start.named_parameters()), supernet.generator)
    if weights is not None:
        pruningnet.forget_widths()
    return pruningnet


def new_structure(
    network: Network, widths: np.ndarray, seed: int, weights: Mapping[str, Tensor] | None = None
) -> fx.GraphModule:
    """A structure int64[L] to be trained: drawn from `seed`, or sliced from `weights` of the unpruned network; in its
    `normalised` form."""
    structure = extract(normalised(network), widths, weights)
    if weights is None:
        initialise(structure, seed)
    return structure


def continued_structure(pruningnet: PruningNet, widths: np.ndarray) -> fx.GraphModule:
    """A structure int64[L] to be trained on from the weights that `pruningnet` gives it."""
    structure = pruningnet.structure(widths)
    restore_scale(structure)
    return structure


def train_pruningnet(
    pruningnet: PruningNet,
    supernet: Supernet,
    data: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path,
    progress: Progress,
    structures: Structures | None = None,
) -> None:
    """Train on random `structures` (default: all); each process draws its own."""
    network, salt = pruningnet.network, Workers.joined().salt
    structures = structures or all_structures(network)
    ends = (np.array(network.max_widths), np.array(network.min_widths)) if supernet.sandwich else ()

    def learn(images: Tensor, labels: Tensor, first: Tensor, *others: Tensor) -> Tensor:
        scores = pruningnet.scores(images, pruningnet.decoded(first))
        loss = F.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)
        loss.backward()
        for other in others:
            F.cross_entropy(pruningnet.scores(images, pruningnet.decoded(other)), scores.detach().softmax(1)).backward()
        return loss.detach()

    learned = Replayed(learn, pruningnet, backward=True)

    def backward(images: Tensor, labels: Tensor, step: int) -> Tensor:
        drawn = structures.draw(np.random.default_rng((seed, step, *salt)))
        return learned(images, labels, *map(pruningnet.encoded, (*ends, drawn)))

    identity = pruningnet_identity(network, supernet, data, recipe, seed, structures)
    fit(pruningnet, backward, data, recipe, seed=seed, checkpoint=checkpoint, identity=identity, progress=progress)


def random_widths(network: Network, rng: np.random.Generator) -> np.ndarray:
    """int64[L]: every gene uniformly one of its choices."""
    return np.array([rng.choice(gene.choices) for gene in network.genes])


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
    teacher: nn.Module | None = None,
) -> None:
    """Train an extracted structure; BN keeps running statistics as usual.

    Args:
        teacher: a trained network in eval mode; half of the loss is then the cross entropy with its scores (Hinton et al. 2015,
            arXiv 1503.02531).
    """

    def learn(images: Tensor, labels: Tensor) -> Tensor:
        scores = structure(images)
        loss = F.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(images).softmax(1)
            loss = (loss + F.cross_entropy(scores, taught)) / 2
        loss.backward()
        return loss.detach()

    learned = Replayed(learn, structure, backward=True)

    def backward(images: Tensor, labels: Tensor, step: int) -> Tensor:
        return learned(images, labels)

    identity = _structure_identity(network, widths, data, recipe, seed, teacher is not None)
    fit(structure, backward, data, recipe, seed=seed, checkpoint=checkpoint, identity=identity, progress=progress)
    structure.eval()


def pruningnet_path(
    folder: Path,
    network: Network,
    supernet: Supernet,
    data: Dataset,
    recipe: Recipe,
    seed: int,
    weights: str = "",
    structures: Structures | None = None,
) -> Path:
    """Where the checkpoint of such a PruningNet belongs under `folder`: runs that may share one do.

    Args:
        weights: digest of what it starts from, where that is not drawn from the seed.
    """
    return _path(folder, network, data, pruningnet_identity(network, supernet, data, recipe, seed, structures), weights)


def unpruned_path(folder: Path, network: Network, data: Dataset, recipe: Recipe, seed: int, weights: str = "") -> Path:
    """The same for the unpruned network, trained alone."""
    identity = _structure_identity(network, np.array(network.max_widths), data, recipe, seed, distilled=False)
    return _path(folder, network, data, identity, weights, "-unpruned")


def _path(folder: Path, network: Network, data: Dataset, identity: Mapping[str, Any], weights: str, what: str = "") -> Path:
    digest = hashlib.sha256(json.dumps([identity, weights], sort_keys=True).encode()).hexdigest()[:8]
    return folder / f"{network.name.replace(':', '.')}{what}-{data.name}-{data.size}px-{digest}.safetensors"


def pruningnet_identity(
    network: Network, supernet: Supernet, data: Dataset, recipe: Recipe, seed: int, structures: Structures | None
) -> dict[str, Any]:
    """What a PruningNet's checkpoint belongs to."""
    return _identity("pruningnet", network, data, recipe, seed) | {
        "choices": {gene.name: list(gene.choices) for gene in network.genes},
        "supernet": asdict(supernet),
        "structures": dict(structures.within) if structures else {},
    }


def _structure_identity(
    network: Network, widths: np.ndarray, data: Dataset, recipe: Recipe, seed: int, distilled: bool
) -> dict[str, Any]:
    identity = _identity("structure", network, data, recipe, seed)
    return identity | {"widths": [int(width) for width in widths], "distilled": distilled}


def _identity(kind: str, network: Network, data: Dataset, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What a checkpoint belongs to; two runs with equal identities, and as many processes, take the same steps."""
    return {
        "kind": kind,
        "network": f"{network.name} {network.signature}{' with BN' * gains_bn(network)}",
        "data": f"{data.name}, {len(data.train)} images of {data.size} pixels",
        "recipe": asdict(recipe),
        "seed": seed,
    }
