"""The main job: budget → table → unpruned network → PruningNet → search → finalists on the device → training → export.

Every stage leaves its result in a file and begins by looking for it, so a run that was stopped goes on where it was; and
processes that train together under torchrun find what the first has done alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pruning.evaluate import StructureEvaluator
from pruning.pruningnet import PruningNet
from pruning.workers import Workers
from search.budget import Budget, show_amount
from search.config import RunConfig
from search.context import Context
from search.feasible import ROUNDING, FeasibleSet, unpruned_amounts
from search.finalists import FINALISTS, Finish, finish, measured_front
from search.genetic import Candidate, Evolution, evolve
from search.pareto import front
from search.progress import Reporter, read_log, search_note
from search.report import OutputError, read_json, result_table, versions, write_file, write_json
from search.retrain import Job, Start, described, exported, trained
from search.uniform import uniform_within


def run(config: RunConfig, out: Path, lut: Path, reporter: Reporter) -> dict[str, Any]:
    """Do the main job in folder `out` and return what result.json holds.

    Args:
        lut: folder of latency tables; the device's is extended where this network is not in it yet.

    Raises:
        MillipruneError: any of them; what is finished stays in `out` and is used next time.
    """
    workers = Workers.joined()
    with workers.first_ahead():
        context = Context.of(config, out, out.parent / "pruningnets", lut, reporter)
        _claim(context)
        feasible = _feasible(context, config.budgets())
    pruningnet, _ = context.pruningnet(feasible)
    predict = partial(context.predictor.predict_widths, context.network)
    with workers.first_ahead():
        candidates = _search(context, feasible, pruningnet, predict)
    networks, chosen = (_front if config.pareto else _winner)(context, pruningnet, candidates, feasible, predict)
    result = {
        "budget": {constraint.quantity: constraint.shown(constraint.high) for constraint in feasible.constraints},
        "genes": [gene.name for gene in context.network.genes],
        "networks": networks,
        **chosen,
        "search": {"evaluations": len(candidates), "front": _front_seen(candidates, predict)},
        "kernels": _kernels(context, networks),
        "normalisation": {"mean": context.data.mean.tolist(), "std": context.data.std.tolist()},
        "config": config.recorded(),
        "device": context.device.fingerprint(),
        "versions": versions(),
    }
    if not workers.rank:
        write_json(out / "result.json", result)
        _report(context, result)
    return result


def _report(context: Context, result: dict[str, Any]) -> None:
    from search.page import page

    out, say = context.out, context.reporter.say
    write_file(out / "report.html", page(result, read_log(out / "log.jsonl")).encode())
    say(f"\n{result_table(result['networks'])}\n")
    for row in result["networks"]:
        if "exported_ms" in row:
            say(f"{row['label']}, as exported, measured once more: {row['exported_ms']:.4g} ms")
    say(f"report: {out / 'report.html'}; beside it result.json, and the networks as .onnx, .pt2 and .safetensors")


def _claim(context: Context) -> None:
    """Write the run's configuration into its folder, or see that it is the same as what began there."""
    path, given = context.out / "run.json", context.config.recorded()
    if context.given is not None:
        given["weights_digest"] = context.given_digest  # the file may have changed under its name
    if not path.exists():
        write_json(path, given)
    stored = read_json(path)
    for key, value in given.items():
        if stored.get(key) != value:
            raise OutputError(
                f"'{context.out}' holds a run with {key}={stored.get(key)!r}, this one has {value!r}; give the same options "
                "to resume it, or another --out."
            )
    context.reporter.log = context.out / "log.jsonl"


def _feasible(context: Context, budgets: dict[str, Budget]) -> FeasibleSet:
    """The structures within the budgets; says what they are, and whether they bind."""
    feasible = FeasibleSet.within(context.network, budgets, context.predictor, context.unpruned_ms)
    feasible.smallest()
    unpruned = unpruned_amounts(context.network, context.unpruned_ms)
    for quantity, (_, high) in feasible.bounds().items():
        context.reporter.say(
            f"budget: {quantity} {show_amount(high, quantity)}; unpruned {show_amount(unpruned[quantity], quantity)}"
        )
    met = all(unpruned[quantity] <= high * (1 + ROUNDING) for quantity, (_, high) in feasible.bounds().items())
    if met and feasible.contains(np.array(context.network.max_widths))[0]:
        context.reporter.say("the unpruned network is within the budget: it does not bind; searching all the same")
    return feasible


def _search(
    context: Context, feasible: FeasibleSet, pruningnet: PruningNet, predict: Callable[[np.ndarray], np.ndarray]
) -> list[Candidate]:
    config = context.config
    evolution = Evolution(config.population, config.generations)
    identity = json.dumps(asdict(config) | {"storage": None, "weights": context.given_digest}, sort_keys=True)
    name = f"{config.slug}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    with context.reporter.bar("genetic search", evolution.evaluations) as update:
        return evolve(
            feasible,
            StructureEvaluator(pruningnet, context.data),
            evolution,
            seed=config.seed,
            journal=config.storage or context.out / "search.journal",
            progress=partial(search_note, update),
            first=uniform_within(feasible),
            latency_ms=predict if config.pareto else None,
            study_name=name,
        )


def _front_seen(candidates: list[Candidate], predict: Callable[[np.ndarray], np.ndarray]) -> list[dict[str, Any]]:
    """All candidates that are not worse than another in both loss and predicted latency, fastest first."""
    latency_ms = predict(np.array([candidate.widths for candidate in candidates]))
    members = np.flatnonzero(front(np.stack([[candidate.loss for candidate in candidates], latency_ms], axis=1)))
    return [
        asdict(candidates[i]) | {"predicted_ms": float(latency_ms[i])} for i in sorted(members, key=lambda i: latency_ms[i])
    ]


def _job(context: Context, pruningnet: PruningNet) -> Job:
    """How the networks of this run are trained and exported."""
    config, network = context.config, context.network
    weights = context.weights if config.weights else None  # what the run itself has trained is no start from scratch
    start = Start(network, config.seed, weights, None if config.from_scratch else pruningnet)
    recipe = context.training(config.epochs)
    return Job(context.module, network, context.data, recipe, config.seed, start, context.out, context.reporter)


def _winner(
    context: Context,
    pruningnet: PruningNet,
    candidates: list[Candidate],
    feasible: FeasibleSet,
    predict: Callable[[np.ndarray], np.ndarray],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the unpruned network, the uniform one and the winner, trained by one recipe; and how it was chosen."""
    _say_gain(context, candidates, feasible)
    chosen = _finish(context, candidates, feasible, predict)
    unpruned_ms, winner_ms, uniform_ms = chosen.predicted_ms
    job, measured = _job(context, pruningnet), context.measured
    teacher, unpruned = _unpruned(context, job, measured(chosen.unpruned_ms), unpruned_ms)
    job = job.taught_by(teacher if context.config.distill else None)
    structure, uniform = trained(job, "uniform", chosen.uniform, measured(chosen.uniform_ms), uniform_ms)
    uniform |= exported(job, context.device, structure, uniform)  # where it does as well, it is there to be taken
    structure, winner = trained(job, "winner", chosen.winner, measured(chosen.winner_ms), winner_ms)
    winner |= {"subval_accuracy": chosen.accuracy, **exported(job, context.device, structure, winner)}
    return [unpruned, uniform, winner], {"finalists": [asdict(finalist) for finalist in chosen.finalists]}


def _unpruned(context: Context, job: Job, measured_ms: float | None, predicted_ms: float) -> tuple[nn.Module, dict[str, Any]]:
    """The unpruned network, trained by the same recipe: before PruningNet, where that begins with it."""
    label, widths = "unpruned", context.network.max_widths
    if not context.supernet.warm:
        return trained(job, label, widths, measured_ms, predicted_ms)
    return context.unpruned, described(job, context.unpruned, label, widths, measured_ms, predicted_ms)


def _say_gain(context: Context, candidates: list[Candidate], feasible: FeasibleSet) -> None:
    """How far ahead of the uniform structure PruningNet holds the best one: where that was 0.003, training saw no gain."""
    losses = {candidate.widths: candidate.loss for candidate in candidates}
    for widths in losses.keys() & {tuple(row) for row in uniform_within(feasible).tolist()}:
        context.reporter.say(f"loss by PruningNet: {min(losses.values()):.3f}, of the uniform structure {losses[widths]:.3f}")


def _finish(
    context: Context, candidates: list[Candidate], feasible: FeasibleSet, predict: Callable[[np.ndarray], np.ndarray]
) -> Finish:
    path = context.out / "finish.json"
    with Workers.joined().first_ahead():
        if not path.exists():
            latency = context.config.budgets().get("latency")
            limit = latency.resolved(context.unpruned_ms).high if latency else float("inf")
            with context.reporter.bar("measuring finalists", min(FINALISTS, len(candidates))) as update:
                chosen = finish(context.device, context.network, candidates, feasible, predict, limit, update)
            write_json(path, asdict(chosen))
    return Finish.from_json(read_json(path))


def _front(
    context: Context,
    pruningnet: PruningNet,
    candidates: list[Candidate],
    feasible: FeasibleSet,
    predict: Callable[[np.ndarray], np.ndarray],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the unpruned network and of networks along the front, trained by one recipe."""
    path = context.out / "front.json"
    with Workers.joined().first_ahead():
        if not path.exists():
            with context.reporter.bar("measuring the front", 1) as update:
                members = measured_front(context.device, context.network, candidates, predict)
                update(1)
            write_json(path, {"finalists": [asdict(member) for member in members]})
    finalists = read_json(path)["finalists"]
    job, measured = _job(context, pruningnet), context.measured
    predicted_ms = float(predict(np.array([context.network.max_widths]))[0])
    teacher, unpruned = _unpruned(context, job, measured(context.unpruned_ms), predicted_ms)
    job = job.taught_by(teacher if context.config.distill else None)
    rows = [unpruned]
    for number, member in enumerate(finalists, 1):
        structure, row = trained(
            job, f"front-{number}", member["widths"], measured(member["measured_ms"]), member["predicted_ms"]
        )
        rows.append(row | {"subval_accuracy": member["accuracy"], **exported(job, context.device, structure, row)})
    return rows, {"finalists": finalists if context.device.at_hand else []}


def _kernels(context: Context, networks: list[dict[str, Any]]) -> dict[str, Any]:
    """Predicted milliseconds of every kernel, of the unpruned network and of the last: both have the same graph."""
    before, after = (context.predictor.predict(context.network.onnx(networks[row]["widths"])).kernels for row in (0, -1))
    return {"kernels": before["kernel"].tolist(), "unpruned_ms": before["ms"].tolist(), "pruned_ms": after["ms"].tolist()}
