"""python tools/build_lut.py --device ort: measure a device and fill its latency table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from latency.errors import MillipruneError, reported_by_command
from search import options

if TYPE_CHECKING:
    from latency.devices import Device
    from latency.graph.network import Network
    from latency.measuring.table import LatencyTable

COVERAGES = ("quick", "adaptive", "full")
Option = typer.Option


def main(
    device: options.DeviceName = "ort",
    network: Annotated[list[str] | None, Option(help="May be given several times (default: mobilenet_v1).")] = None,
    input_size: options.InputSize = 224,
    batch: options.Batch = 1,
    num_classes: options.NumClasses = 1000,
    threads: options.Threads = 1,
    precision: options.Precision = "fp32",
    align: options.Align = None,
    coverage: Annotated[
        str,
        Option(
            help="quick: a few dozen random structures; adaptive: more where predictions are in doubt, until they get no "
            "better; full: every pair of widths of every layer."
        ),
    ] = "quick",
    minutes: Annotated[float | None, Option(min=0.01, help="Adaptive coverage stops after this time for each network.")] = None,
    out: options.Lut = Path("lut_data"),
) -> None:
    """Measure structures of NETWORK on DEVICE. Interrupt it whenever you like: the same command goes on."""
    with reported_by_command():
        if coverage not in COVERAGES:
            raise MillipruneError(f"--coverage {coverage} given; expected one of {', '.join(COVERAGES)}.")
        if minutes is not None and coverage != "adaptive":
            raise MillipruneError(f"--minutes {minutes} given with --coverage {coverage}; it needs --coverage adaptive.")
        from latency import open_device, trace
        from latency.alignment import alignment_of
        from latency.measuring.speed import difference, typical
        from latency.measuring.table import REFUSED, LatencyTable
        from pruning.networks import load

        opened = open_device(device, threads=threads, precision=precision, lut=out)
        modules = {name: load(name, num_classes) for name in network or ["mobilenet_v1"]}
        multiple = align or alignment_of(opened, out)
        for name, module in modules.items():
            traced = trace(module, (batch, 3, input_size, input_size), align=multiple, name=name)
            print(f"{name}: {len(traced.genes)} genes, widths in multiples of {multiple}")
            table = LatencyTable.open(out, opened.fingerprint())
            begun, before, usual_core_ms = time.monotonic(), len(table), table.core_ms
            table = _built(opened, traced, table, coverage, minutes)
            core = difference(typical(table.structures["core_ms"][before:]) / usual_core_ms)
            print(
                f"{name}: {len(table) - before} structures measured in {time.monotonic() - begun:.1f} s; "
                f"{table.path} now holds {len(table)}, {table.structures['stable'].mean():.1%} of them stable"
                + (f"; {len(table.refused)} refused, see {table.path / REFUSED}" if table.refused else "")
                + (f"; {core}: somebody else's work?" if core else "")
            )


def _built(device: Device, network: Network, table: LatencyTable, coverage: str, minutes: float | None) -> LatencyTable:
    from latency.build import build_adaptively, build_table, expected_s, missing_structures
    from latency.coverage import full_plan, quick_plan
    from latency.measuring.measurement import MANY_STRUCTURES

    title = f"{network.name} on {device.name}"
    if coverage == "adaptive":
        with tqdm(desc=title, unit="structure", dynamic_ncols=True) as meter:
            table, errors = build_adaptively(device, network, table, minutes=minutes or float("inf"), progress=meter.update)
        print(f"mean error on structures before they were measured: {', '.join(f'{error:.1%}' for error in errors)}")
        return table
    plan, protocol = (full_plan(network), MANY_STRUCTURES) if coverage == "full" else (quick_plan(network), None)
    missing = missing_structures(network, plan, table)
    if missing:
        seconds = expected_s(device, network, missing, protocol)
        print(f"{len(missing)} of {len(plan)} structures to measure, roughly {seconds:.0f} s; it may be interrupted")
    with tqdm(total=len(plan), desc=title, unit="structure", dynamic_ncols=True) as meter:
        return build_table(device, network, plan, table, protocol=protocol, progress=meter.update)


if __name__ == "__main__":
    typer.run(main)
