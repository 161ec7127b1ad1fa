"""What experiments with one network share: its predictor, PruningNets and trainings from scratch, each made once and kept."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from latency import open_device, trace
from latency.alignment import alignment_of
from latency.devices import Device
from latency.network import Network
from latency.predictor import LatencyPredictor
from pruning.data import Dataset
from pruning.evaluate import accuracy
from pruning.fit import Recipe, training_steps
from pruning.networks import load
from pruning.pruningnet import PruningNet
from pruning.train import Supernet, new_pruningnet, new_structure, pruningnet_path, train_pruningnet, train_structure
from search.measured import quick_table, unpruned_ms
from search.progress import Reporter, training_note
from search.report import read_json, write_json


@dataclass(frozen=True)
class Experiment:
    """A network with the folder `runs` in which everything finished is kept."""

    device: Device
    data: Dataset
    network: Network
    predictor: LatencyPredictor
    runs: Path
    reporter: Reporter

    @classmethod
    def of(cls, name: str, device_name: str, data: Dataset, lut: Path, runs: Path) -> Experiment:
        """Trace the network; a quick table is measured first where there is none."""
        device, reporter = open_device(device_name, lut=lut), Reporter()
        shape = (1, 3, data.size, data.size)
        network = trace(load(name, data.classes), shape, align=alignment_of(device, lut), name=name)
        table = quick_table(device, network, lut, reporter)
        return cls(device, data, network, LatencyPredictor(table), runs / name.replace(":", "."), reporter)

    def predict(self, widths: np.ndarray) -> np.ndarray:
        """float64[P] milliseconds of structures int64[P, L]."""
        return self.predictor.predict_widths(self.network, widths)

    def unpruned_ms(self) -> float:
        """Measured once, so that percentages keep their meaning."""
        return unpruned_ms(self.device, self.network, self.runs)

    def pruningnet(self, kind: Supernet, recipe: Recipe) -> tuple[PruningNet, float]:
        """A trained PruningNet, and the seconds that training took (its last part, if it was interrupted)."""
        supernet = new_pruningnet(self.network, kind, 0).to(self.data.mean.device)
        path = pruningnet_path(self.runs, self.network, kind, self.data, recipe, 0)
        log, began = path.with_suffix(".json"), time.monotonic()
        title = f"PruningNet: {kind.generator}{', sandwich' if kind.sandwich else ''}"
        with self.reporter.bar(title, training_steps(self.data, recipe)) as update:
            train_pruningnet(
                supernet, kind, self.data, recipe, seed=0, checkpoint=path, progress=partial(training_note, update)
            )
        if not log.exists():
            write_json(log, {"seconds": time.monotonic() - began})
        return supernet, float(read_json(log)["seconds"])

    def from_scratch(self, widths: np.ndarray, recipe: Recipe, seed: int) -> float:
        """Test accuracy of the structure int64[L], trained from scratch."""
        structure = new_structure(self.network, widths, seed).to(self.data.mean.device)
        name = f"{'-'.join(map(str, widths))}-{recipe.epochs}e-s{seed}.safetensors"
        with self.reporter.bar(f"from scratch, seed {seed}", training_steps(self.data, recipe)) as update:
            train_structure(
                structure, self.network, widths, self.data, recipe, seed=seed, checkpoint=self.runs / "scratch" / name,
                progress=partial(training_note, update),
            )  # fmt: skip
        return accuracy(structure, self.data.test, self.data)
