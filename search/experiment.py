"""What experiments with one network share: its predictor, PruningNets and trained structures, each made once and kept."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from latency import open_device
from latency.alignment import alignment_of
from latency.devices import Device
from latency.graph.network import Network
from latency.prediction.predictor import LatencyPredictor
from pruning.data import Dataset
from pruning.evaluate import StructureEvaluator, accuracy
from pruning.fit import training_steps
from pruning.importance import start_from
from pruning.networks import load, trace_classifier
from pruning.pruningnet import PruningNet
from pruning.recipe import Recipe
from pruning.train import (
    Supernet,
    continued_structure,
    new_pruningnet,
    new_structure,
    pruningnet_path,
    train_pruningnet,
    train_structure,
    unpruned_path,
)
from search.feasible import FeasibleSet
from search.focus import trained_on
from search.genetic import Candidate, Evolution, best, evolve
from search.measured import quick_table, unpruned_ms
from search.progress import Reporter, search_note, training_note
from search.report import write_json


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
        network = trace_classifier(load(name, data.classes, seed=0), name, shape, data.classes, alignment_of(device, lut))
        table = quick_table(device, network, lut, reporter)
        return cls(device, data, network, LatencyPredictor(table), runs / name.replace(":", "."), reporter)

    def predict(self, widths: np.ndarray) -> np.ndarray:
        """float64[P] milliseconds of structures int64[P, L]."""
        return self.predictor.predict_widths(self.network, widths)

    def unpruned_ms(self) -> float:
        """Measured once, so that percentages keep their meaning."""
        return unpruned_ms(self.device, self.network, self.predictor, self.runs)

    def pruningnet(self, kind: Supernet, recipe: Recipe, feasible: FeasibleSet, alone: Recipe) -> tuple[PruningNet, Path]:
        """A PruningNet, trained for searches in `feasible`, and its checkpoint, whose name tells it from all others. A `warm`
        one begins with the unpruned network as trained `alone`."""
        weights, start = self.start(alone) if kind.warm else (None, "")
        supernet = new_pruningnet(self.network, kind, 0, weights).to(self.data.mean.device)
        structures = trained_on(kind, feasible, self.device)
        path = pruningnet_path(self.runs, self.network, kind, self.data, recipe, 0, start, structures)
        log, began = path.with_suffix(".json"), time.monotonic()
        with self.reporter.bar(f"PruningNet: {kind}", training_steps(self.data, recipe)) as update:
            train_pruningnet(
                supernet, kind, self.data, recipe, seed=0, checkpoint=path, progress=partial(training_note, update),
                structures=structures,
            )  # fmt: skip
        if not log.exists():
            write_json(log, {"seconds": time.monotonic() - began})
        return supernet, path

    def searched(
        self,
        feasible: FeasibleSet,
        evaluate: StructureEvaluator,
        evolution: Evolution,
        journal: Path,
        first: np.ndarray | None = None,
    ) -> Candidate:
        """The best that a search in `feasible` finds by `evaluate`, beginning with structures `first` (int64[K, L])."""
        with self.reporter.bar(f"search: {journal.stem}", evolution.evaluations) as update:
            candidates = evolve(
                feasible, evaluate, evolution, seed=0, journal=journal, progress=partial(search_note, update), first=first,
            )  # fmt: skip
        return best(candidates, 1)[0]

    def start(self, alone: Recipe) -> tuple[dict[str, Tensor], str]:
        """What the unpruned network learns, its most important channels first, and what tells it from others."""
        unpruned = self._structure(np.array(self.network.max_widths), alone, 0)
        start = unpruned_path(self.runs, self.network, self.data, alone, 0).stem
        return start_from(self.network, unpruned.state_dict(), self.data), start

    def trained(self, widths: np.ndarray, recipe: Recipe, seed: int, start: tuple[PruningNet, str] | None = None) -> float:
        """Test accuracy of the structure int64[L], trained from scratch, or on from what a PruningNet gives it. Trainings from
        one PruningNet are told from those of others by its label."""
        return accuracy(self._structure(widths, recipe, seed, start), self.data.test, self.data)

    def trained_on(self, structure: nn.Module, widths: np.ndarray, recipe: Recipe, seed: int, label: str) -> float:
        """Test accuracy of `structure`, whose widths are int64[L], trained on; `label` tells it from others."""
        return accuracy(self._fitted(structure, widths, recipe, seed, label), self.data.test, self.data)

    def _structure(
        self, widths: np.ndarray, recipe: Recipe, seed: int, start: tuple[PruningNet, str] | None = None
    ) -> nn.Module:
        label = f"continued-{start[1]}" if start else "scratch"
        structure = continued_structure(start[0], widths) if start else new_structure(self.network, widths, seed)
        return self._fitted(structure, widths, recipe, seed, label)

    def _fitted(self, structure: nn.Module, widths: np.ndarray, recipe: Recipe, seed: int, label: str) -> nn.Module:
        structure = structure.to(self.data.mean.device)
        checkpoint = self.runs / label / f"{'-'.join(map(str, widths))}-{recipe.epochs}e-lr{recipe.lr:g}-s{seed}.safetensors"
        with self.reporter.bar(f"{label}, seed {seed}", training_steps(self.data, recipe)) as update:
            train_structure(
                structure, self.network, widths, self.data, recipe, seed=seed, checkpoint=checkpoint,
                progress=partial(training_note, update),
            )  # fmt: skip
        return structure
