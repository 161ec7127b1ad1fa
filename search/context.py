"""What all stages of a run share: device, images, network, table, and the unpruned network and PruningNet as trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from torch import Tensor, fx, nn

from latency import open_device
from latency.alignment import alignment_of
from latency.devices import Device
from latency.graph.network import Network
from latency.prediction.predictor import LatencyPredictor
from pruning.data import Dataset, find_data
from pruning.evaluate import STATISTICS_BATCH, calibration_images
from pruning.fit import training_steps
from pruning.hardware import compute_device
from pruning.importance import start_from
from pruning.networks import load, trace_classifier
from pruning.normalise import gains_bn, trained_weights
from pruning.pretrained import digest, load_weights
from pruning.pruningnet import PruningNet
from pruning.recipe import Recipe, recipe_for
from pruning.train import (
    SUPERNETS,
    Supernet,
    new_pruningnet,
    new_structure,
    pruningnet_path,
    train_pruningnet,
    train_structure,
    unpruned_path,
)
from search.budget import show_amount
from search.config import RunConfig
from search.feasible import FeasibleSet
from search.focus import trained_on
from search.measured import quick_table, unpruned_ms
from search.progress import Reporter, training_note


@dataclass(frozen=True)
class Context:
    """`network` is traced from `module`; `given` are trained weights to start from, if there are any. Results go to the folder
    `out`; PruningNets are kept in `pruningnets`, latency tables in `lut`, for later runs too."""

    config: RunConfig
    out: Path
    pruningnets: Path
    lut: Path
    reporter: Reporter
    device: Device
    data: Dataset
    module: nn.Module
    network: Network
    given: Mapping[str, Tensor] | None

    @classmethod
    def of(cls, config: RunConfig, out: Path, pruningnets: Path, lut: Path, reporter: Reporter) -> Context:
        """Open, load and trace what `config` names; says what that is."""
        device = open_device(config.device, threads=config.threads, precision=config.precision, lut=lut)
        found = find_data(config.data, config.image_size, reporter.bar)
        module = load(config.network, found.classes, seed=config.seed)
        kept = load_weights(module, config.network, config.weights) if config.weights else ()
        shape = (config.batch, 3, found.size, found.size)
        align = config.align or alignment_of(device, lut)
        network = trace_classifier(module, config.network, shape, found.classes, align)
        data = found.load().to(compute_device())
        reporter.say(
            f"{network.name}: {len(network.genes)} genes in multiples of {align}, "
            f"{show_amount(network.macs(network.max_widths), 'macs')} MACs; "
            f"{data.name}: {len(data.train)} training images of {data.size} pixels, {data.classes} classes"
        )
        if not device.at_hand:
            reporter.say(f"{device.name} is elsewhere: nothing is measured, all milliseconds are predicted from its table")
        if network.unfollowed:
            reporter.say(
                f"channels that meet an operation that cannot be followed are kept ({len(network.unfollowed)} of them; "
                f"{network.unfollowed[0]}, for one)"
            )
        if gains_bn(network):
            reporter.say("its convolutions have BN while they are trained, folded into them when exported")
        if kept:
            reporter.say(f"starting from '{config.weights}', but for {' and '.join(kept)}, which differ in shape")
        given = trained_weights(network, calibration_images(data, STATISTICS_BATCH).cpu()) if config.weights else None
        return cls(config, out, pruningnets, lut, reporter, device, data, module, network, given)

    @cached_property
    def predictor(self) -> LatencyPredictor:
        """Of the device's table; the network is measured first where it is not in it yet."""
        return LatencyPredictor(quick_table(self.device, self.network, self.lut, self.reporter))

    @cached_property
    def unpruned_ms(self) -> float:
        """Measured once for `out`."""
        return unpruned_ms(self.device, self.network, self.predictor, self.out)

    def measured(self, ms: float) -> float | None:
        """`ms` where the device has said so; None where it is elsewhere, and they are predicted."""
        return ms if self.device.at_hand else None

    @cached_property
    def given_digest(self) -> str:
        """Of the weights given; "" without any."""
        return "" if self.given is None else digest(self.given)

    def training(self, epochs: int) -> Recipe:
        """How PruningNet, and the networks, are trained."""
        config = self.config
        return recipe_for(self.network, epochs, config.train_batch, config.optimizer, config.lr)

    @property
    def supernet(self) -> Supernet:
        """What kind of PruningNet."""
        return SUPERNETS[self.config.recipe]

    @property
    def _unpruned_path(self) -> Path:
        recipe = self.training(self.config.epochs)
        return unpruned_path(self.pruningnets, self.network, self.data, recipe, self.config.seed, self.given_digest)

    @cached_property
    def unpruned(self) -> fx.GraphModule:
        """The unpruned network, trained alone, from the weights given or from scratch; or loaded from its checkpoint."""
        network, data, seed, recipe = self.network, self.data, self.config.seed, self.training(self.config.epochs)
        full = np.array(network.max_widths)
        structure = new_structure(network, full, seed, self.given).to(compute_device())
        with self.reporter.bar("training unpruned", training_steps(data, recipe)) as update:
            train_structure(
                structure, network, full, data, recipe, seed=seed, checkpoint=self._unpruned_path,
                progress=partial(training_note, update),
            )  # fmt: skip
        return structure

    @cached_property
    def weights(self) -> Mapping[str, Tensor] | None:
        """Those that PruningNet starts from, each gene's most important channels first; None: drawn from the seed."""
        weights = self.unpruned.state_dict() if self.supernet.warm else self.given
        if weights is None:
            return None
        self.reporter.say("PruningNet begins with trained weights, the most important channels first")
        return start_from(self.network, weights, self.data)

    def pruningnet(self, feasible: FeasibleSet | None) -> tuple[PruningNet, Path]:
        """The PruningNet for searches in `feasible` (None: of all structures), trained, or trained on from its checkpoint."""
        config, network, data, seed = self.config, self.network, self.data, self.config.seed
        supernet = self.supernet
        recipe = self.training(config.pruningnet_epochs or supernet.epochs(config.epochs))
        pruningnet = new_pruningnet(network, supernet, seed, self.weights).to(compute_device())
        structures = trained_on(supernet, feasible, self.device, front=config.pareto) if feasible else None
        start = self._unpruned_path.stem if supernet.warm else self.given_digest
        path = pruningnet_path(self.pruningnets, network, supernet, data, recipe, seed, start, structures)
        with self.reporter.bar("training PruningNet", training_steps(data, recipe)) as update:
            train_pruningnet(
                pruningnet, supernet, data, recipe, seed=seed, checkpoint=path,
                progress=partial(training_note, update), structures=structures,
            )  # fmt: skip
        return pruningnet, path
