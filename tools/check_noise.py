"""python tools/check_noise.py: does a busy neighbour on the same core get into a table? (Linux)

Builds a quick table twice, alone and beside a process that computes on the very core that measures, and compares what
the two predict.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from latency.errors import reported_by_command
from search import options

Option = typer.Option


def main(
    network: options.NetworkName = "mobilenet_v1",
    input_size: options.InputSize = 224,
    structures: Annotated[int, Option(min=20, help="Measured for each table.")] = 40,
) -> None:
    """Print how far the two predictions are apart, and how many structures were flagged unstable."""
    with reported_by_command():
        import numpy as np

        from latency import open_device, trace
        from latency.build import build_table
        from latency.coverage import quick_plan
        from latency.measuring.table import LatencyTable
        from latency.prediction.predictor import LatencyPredictor
        from pruning.networks import load

        core = min(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {core})
        device = open_device("ort")
        traced = trace(load(network), (1, 3, input_size, input_size), name=network)
        plan = quick_plan(traced, structures)
        probe = quick_plan(traced, 500, seed=1)
        predicted = []
        for title, busy in (("alone", False), ("beside a busy neighbour", True)):
            neighbour = multiprocessing.get_context("spawn").Process(target=_compute_on, args=(core,), daemon=True)
            if busy:
                neighbour.start()
            with tempfile.TemporaryDirectory() as folder, tqdm(total=len(plan), desc=title) as meter:
                table = LatencyTable.open(Path(folder), device.fingerprint())
                table = build_table(device, traced, plan, table, progress=meter.update)
                predicted.append(LatencyPredictor(table).predict_widths(traced, probe))
            if busy:
                neighbour.kill()
            print(f"{title}: {table.structures['stable'].mean():.0%} of {len(table)} structures stable")
        apart = np.abs(predicted[1] / predicted[0] - 1)
        print(
            f"predictions of {len(probe)} structures differ by {np.median(apart):.2%} (median), "
            f"{np.quantile(apart, 0.95):.2%} (95 %), {apart.max():.2%} (most)"
        )


def _compute_on(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        pass


if __name__ == "__main__":
    typer.run(main)
