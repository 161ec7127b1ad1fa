"""What all stages of a run share, and the training of a PruningNet ahead of one: device, images, network, table, PruningNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor, nn

from latency import open_device
from latency.alignment import alignment_of
from latency.devices import Device
from latency.graph.network import Network
from latency.prediction.predictor import LatencyPredictor
from pruning.data import Dataset, find_data
from pruning.evaluate import STATISTICS_BATCH, labelled_calibration_images
from pruning.fit import training_steps
from pruning.hardware import compute_device
from pruning.importance import most_important_first
from pruning.networks import load, trace_classifier
from pruning.normalise import gains_bn, trained_weights
from pruning.pretrained import digest, load_weights
from pruning.pruningnet import PruningNet
from pruning.recipe import Recipe, recipe_for
from pruning.train import new_pruningnet, pruningnet_path, supernet_for, train_pruningnet
from search.budget import show_amount
from search.config import RunConfig
from search.feasible import FeasibleSet
from search.focus import trained_on
from search.measured import quick_table, unpruned_ms
from search.progress import Reporter, training_note


@dataclass(frozen=True)
class Context:
    """`network` is traced from `module`; `weights` are those to start from, None to draw them from the seed. Results go to the
    folder `out`, latency tables are kept in `lut`."""

    config: RunConfig
    out: Path
    lut: Path
    reporter: Reporter
    device: Device
    data: Dataset
    module: nn.Module
    network: Network
    weights: Mapping[str, Tensor] | None

    @classmethod
    def of(cls, config: RunConfig, out: Path, lut: Path, reporter: Reporter) -> Context:
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
        weights = _starting_weights(network, data) if config.weights else None
        return cls(config, out, lut, reporter, device, data, module, network, weights)

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
    def weights_digest(self) -> str:
        """Of the weights to start from; "" without any."""
        return "" if self.weights is None else digest(self.weights)

    def training(self, epochs: int) -> Recipe:
        """How PruningNet, and in the end the networks, are trained."""
        config = self.config
        return recipe_for(self.network, epochs, config.train_batch, config.optimizer, config.lr)

    def pruningnet(self, folder: Path, feasible: FeasibleSet | None) -> tuple[PruningNet, Path]:
        """The PruningNet for searches in `feasible` (None: of all structures), trained, or trained on from its checkpoint,
        which is kept in `folder`."""
        config, network, data, seed = self.config, self.network, self.data, self.config.seed
        recipe = self.training(config.pruningnet_epochs)
        supernet = supernet_for(config.recipe, recipe)
        pruningnet = new_pruningnet(network, supernet, seed, self.weights).to(compute_device())
        structures = trained_on(supernet, feasible, self.device, front=config.pareto) if feasible else None
        path = pruningnet_path(folder, network, supernet, data, recipe, seed, self.weights_digest, structures)
        with self.reporter.bar("training PruningNet", training_steps(data, recipe)) as update:
            train_pruningnet(
                pruningnet, supernet, data, recipe, seed=seed, checkpoint=path,
                progress=partial(training_note, update), structures=structures,
            )  # fmt: skip
        return pruningnet, path


def _starting_weights(network: Network, data: Dataset) -> dict[str, Tensor]:
    """Those of the trained `network`, its most important channels first."""
    images, labels = (one.cpu() for one in labelled_calibration_images(data, STATISTICS_BATCH))
    return most_important_first(network, trained_weights(network, images), images, labels)
