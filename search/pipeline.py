"""The main job: budget → table → PruningNet → search → finalists on the device → training → export.

Every stage leaves its result in a file and begins by looking for it, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch

from latency import open_device, trace
from latency.alignment import alignment_of
from latency.build import build_table
from latency.coverage import quick_plan
from latency.devices import Device
from latency.network import Network
from latency.predictor import LatencyPredictor
from latency.protocol import measure
from latency.table import LatencyTable
from pruning.data import Dataset, load_data
from pruning.evaluate import StructureEvaluator, accuracy
from pruning.export import exported_accuracy, structure_onnx
from pruning.extract import extract
from pruning.networks import load
from pruning.pruningnet import PruningNet
from pruning.train import Recipe, new_pruningnet, pruningnet_path, train_pruningnet, train_structure, training_steps
from search.budget import Budget, show_amount
from search.config import RunConfig
from search.feasible import FeasibleSet
from search.finalists import FINALISTS, Finish, finish
from search.genetic import Candidate, Evolution, evolve
from search.report import OutputError, read_json, result_table, versions, write_file, write_json

Update = Callable[[int, str], object]
"""Called with how much of a stage is done and a note on how it goes."""


class Reporter(Protocol):
    """Where a run tells what it does."""

    def say(self, text: str) -> None: ...

    def bar(self, title: str, total: int) -> AbstractContextManager[Update]: ...


@dataclass(frozen=True)
class _Context:
    """What all stages share."""

    config: RunConfig
    out: Path
    reporter: Reporter
    device: Device
    data: Dataset
    network: Network


def run(config: RunConfig, out: Path, lut: Path, reporter: Reporter) -> dict[str, Any]:
    """Do the main job in folder `out` and return what result.json holds.

    Args:
        lut: folder of latency tables; the device's is extended where this network is not in it yet.

    Raises:
        MillipruneError: any of them; what is finished stays in `out` and is used next time.
    """
    budgets = config.budgets()
    context = _context(config, out, lut, reporter)
    _claim(context)
    predictor = _predictor(context, lut)
    feasible = _feasible(context, budgets, predictor)
    supernet = _pruningnet(context)
    candidates = _search(context, feasible, supernet)
    chosen = _finish(context, candidates, feasible, predictor)
    result = _trained(context, chosen, candidates, feasible)
    write_json(out / "result.json", result)
    reporter.say(f"\n{result_table(result['networks'])}\n")
    reporter.say(f"the exported model, measured once more: {result['networks'][-1]['exported_ms']:.4g} ms")
    reporter.say(f"result: {out / 'result.json'}, model: {out / 'winner.onnx'}, weights: {out / 'winner.safetensors'}")
    return result


def _context(config: RunConfig, out: Path, lut: Path, reporter: Reporter) -> _Context:
    device = open_device(config.device, threads=config.threads, precision=config.precision)
    data = load_data(config.data, config.image_size)
    shape = (config.batch, 3, data.size, data.size)
    align = config.align or alignment_of(device, lut)
    network = trace(load(config.network, data.classes), shape, align=align, name=config.network)
    reporter.say(
        f"{network.name}: {len(network.genes)} genes in multiples of {align}, "
        f"{show_amount(network.macs(network.max_widths), 'macs')} MACs; "
        f"{data.name}: {len(data.train)} training images of {data.size} pixels, {data.classes} classes"
    )
    return _Context(config, out, reporter, device, data, network)


def _claim(context: _Context) -> None:
    """Write the run's configuration into its folder, or see that it is the same as what began there."""
    path, given = context.out / "run.json", asdict(context.config)
    if not path.exists():
        write_json(path, given)
        return
    stored = read_json(path)
    for key, value in given.items():
        if stored.get(key) != value:
            raise OutputError(
                f"'{context.out}' holds a run with {key}={stored.get(key)!r}, this one has {value!r}; give the same options "
                "to resume it, or another --out."
            )


def _predictor(context: _Context, lut: Path) -> LatencyPredictor:
    table = LatencyTable.open(lut, context.device.fingerprint())
    plan = quick_plan(context.network)
    if table.count(context.network) < len(plan):
        with context.reporter.bar(f"measuring {context.config.device}", len(plan)) as update:
            table = build_table(context.device, context.network, plan, table, progress=_counted(update))
    context.reporter.say(f"latency table: {table.path}, {table.count(context.network)} structures of this network")
    return LatencyPredictor(table)


def _counted(update: Update) -> Callable[[int], object]:
    """A progress callback that is given increments."""
    done = 0

    def add(increment: int) -> None:
        nonlocal done
        done += increment
        update(done, "")

    return add


def _feasible(context: _Context, budgets: dict[str, Budget], predictor: LatencyPredictor) -> FeasibleSet:
    """The structures within the budgets; says what they are, and whether they bind."""
    network, full = context.network, np.array(context.network.max_widths)
    unpruned = {
        "latency": _unpruned_ms(context),
        "macs": float(network.macs(full)),
        "params": float(network.params(full)),
    }
    resolved = {quantity: budget.resolved(unpruned[quantity]) for quantity, budget in budgets.items()}
    bounds: dict[str, Any] = {
        {"latency": "latency_ms"}.get(quantity, quantity): (budget.low, budget.high) for quantity, budget in resolved.items()
    }
    feasible = FeasibleSet(network, predictor=predictor, **bounds)
    feasible.smallest()
    for quantity, budget in resolved.items():
        context.reporter.say(
            f"budget: {quantity} {show_amount(budget.high, quantity)}; unpruned {show_amount(unpruned[quantity], quantity)}"
        )
    if feasible.contains(full)[0] and all(unpruned[quantity] <= budget.high for quantity, budget in resolved.items()):
        context.reporter.say("the unpruned network is within the budget: it does not bind; searching all the same")
    return feasible


def _unpruned_ms(context: _Context) -> float:
    """Measured once a run: percentages must mean the same after resuming."""
    path = context.out / "unpruned.json"
    if not path.exists():
        measured = measure(context.device, [context.network.onnx(context.network.max_widths)])[0]
        write_json(path, {"latency_ms": measured.latency_ms, "rounds_ms": measured.rounds_ms.tolist()})
    return float(read_json(path)["latency_ms"])


def _pruningnet(context: _Context) -> PruningNet:
    config = context.config
    recipe = Recipe(config.pruningnet_epochs, config.train_batch)
    supernet = new_pruningnet(context.network, config.seed)
    path = pruningnet_path(context.out.parent / "pruningnets", context.network, context.data, recipe, config.seed)
    with context.reporter.bar("training PruningNet", training_steps(context.data, recipe)) as update:
        train_pruningnet(supernet, context.data, recipe, seed=config.seed, checkpoint=path, progress=_loss(update))
    return supernet


def _loss(update: Update) -> Callable[[int, float], object]:
    return lambda step, loss: update(step, f"loss {loss:.3f}")


def _search(context: _Context, feasible: FeasibleSet, supernet: PruningNet) -> list[Candidate]:
    config = context.config
    evolution = Evolution(config.population, config.generations)
    with context.reporter.bar("genetic search", evolution.evaluations) as update:
        return evolve(
            feasible,
            StructureEvaluator(supernet, context.data),
            evolution,
            seed=config.seed,
            journal=context.out / "search.journal",
            progress=lambda done, top: update(done, f"best {top:.1%}"),
        )


def _finish(context: _Context, candidates: list[Candidate], feasible: FeasibleSet, predictor: LatencyPredictor) -> Finish:
    path = context.out / "finish.json"
    if path.exists():
        return Finish.from_json(read_json(path))
    latency = context.config.budgets().get("latency")
    limit = latency.resolved(_unpruned_ms(context)).high if latency else float("inf")
    with context.reporter.bar("measuring finalists", min(FINALISTS, len(candidates))) as update:
        predict = partial(predictor.predict_widths, context.network)
        chosen = finish(context.device, context.network, candidates, feasible, predict, limit, update)
    write_json(path, asdict(chosen))
    return chosen


def _trained(context: _Context, chosen: Finish, candidates: list[Candidate], feasible: FeasibleSet) -> dict[str, Any]:
    """Train the three networks by one recipe and export the winner."""
    unpruned = _train_one(context, "unpruned", context.network.max_widths, chosen.unpruned_ms, chosen.predicted_ms[0])
    uniform = _train_one(context, "uniform", chosen.uniform, chosen.uniform_ms, chosen.predicted_ms[2])
    winner = _train_one(context, "winner", chosen.winner, chosen.winner_ms, chosen.predicted_ms[1])
    config, network = context.config, context.network
    return {
        "budget": {constraint.quantity: constraint.shown(constraint.high) for constraint in feasible.constraints},
        "genes": [gene.name for gene in network.genes],
        "winner_subval_accuracy": chosen.accuracy,
        "networks": [unpruned, uniform, winner],
        "search": {"evaluations": len(candidates), "measured_finalists": chosen.measured_finalists},
        "normalisation": {"mean": context.data.mean.tolist(), "std": context.data.std.tolist()},
        "config": asdict(config),
        "device": context.device.fingerprint(),
        "versions": versions(),
    }


def _train_one(
    context: _Context, label: str, widths: tuple[int, ...], measured_ms: float, predicted_ms: float
) -> dict[str, Any]:
    config, network, data = context.config, context.network, context.data
    structure = extract(network, widths)
    recipe = Recipe(config.epochs, config.train_batch)
    with context.reporter.bar(f"training {label}", training_steps(data, recipe)) as update:
        train_structure(
            structure, network, np.array(widths), data, recipe, seed=config.seed,
            checkpoint=context.out / "checkpoints" / f"{label}.safetensors", progress=_loss(update),
        )  # fmt: skip
    row = {
        "label": label,
        "widths": list(widths),
        "test_accuracy": accuracy(structure, data.test, data),
        "measured_ms": measured_ms,
        "predicted_ms": predicted_ms,
        "macs": network.macs(widths),
        "params": network.params(widths),
    }
    if label == "winner":
        row |= _exported(context, structure, row["test_accuracy"])
    return row


def _exported(context: _Context, structure: torch.nn.Module, test_accuracy: float) -> dict[str, Any]:
    """Write ONNX and weights, load the ONNX file again, and see that it is as accurate and as fast."""
    out, data = context.out, context.data
    model = structure_onnx(structure, context.network.input_shape)
    weights = {name: tensor.contiguous() for name, tensor in structure.state_dict().items()}
    write_file(out / "winner.safetensors", safetensors.torch.save(weights))
    write_file(out / "winner.onnx", model)
    onnx_accuracy = exported_accuracy(out / "winner.onnx", data.test, data)
    if abs(onnx_accuracy - test_accuracy) > max(0.002, 1.5 / len(data.test)):
        raise OutputError(
            f"the exported ONNX model reaches {onnx_accuracy:.2%} where PyTorch reaches {test_accuracy:.2%}; please report it."
        )
    return {"onnx_accuracy": onnx_accuracy, "exported_ms": context.device.measure(model).latency_ms}
