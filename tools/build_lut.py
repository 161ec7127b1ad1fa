"""python tools/build_lut.py --device ort: measure a device and fill its latency table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from latency.errors import MillipruneError, reported_by_command

if TYPE_CHECKING:
    from latency.devices import Device
    from latency.network import Network

COVERAGES = ("full", "quick")
Option = typer.Option


def main(
    device: Annotated[str, Option(help="ort or trt.")] = "ort",
    network: Annotated[list[str] | None, Option(help="May be given several times (default: mobilenet_v1).")] = None,
    input_size: Annotated[int, Option(min=8, help="Side of the images in pixels.")] = 224,
    batch: Annotated[int, Option(min=1, help="Images in a batch.")] = 1,
    num_classes: Annotated[int, Option(min=1, help="Outputs of the classifier.")] = 1000,
    threads: Annotated[int, Option(help="CPU threads that compute.")] = 1,
    precision: Annotated[str, Option(help="fp32, or what else the device offers.")] = "fp32",
    align: Annotated[int | None, Option(min=1, help="Widths in multiples of this (default: the device's).")] = None,
    coverage: Annotated[str, Option(help="quick: random structures; full: every pair of widths of every layer.")] = "quick",
    out: Annotated[Path, Option(help="Folder of latency tables.")] = Path("lut_data"),
) -> None:
    """Measure structures of NETWORK on DEVICE. Interrupt it whenever you like: the same command goes on."""
    with reported_by_command():
        if coverage not in COVERAGES:
            raise MillipruneError(f"--coverage {coverage} given; expected full or quick.")
        from latency import open_device, trace
        from pruning.networks import load

        opened = open_device(device, threads=threads, precision=precision)
        for name in network or ["mobilenet_v1"]:
            module, shape = load(name, num_classes), (batch, 3, input_size, input_size)
            traced = trace(module, shape, align=align or opened.alignment, name=name)
            _build(opened, traced, coverage, out)


def _build(device: Device, network: Network, coverage: str, out: Path) -> None:
    from latency.build import build_table
    from latency.coverage import full_plan, quick_plan
    from latency.table import LatencyTable

    plan = full_plan(network) if coverage == "full" else quick_plan(network)
    table = LatencyTable.open(out, device.fingerprint())
    begun, before = time.monotonic(), len(table)
    with tqdm(total=len(plan), desc=f"{network.name} on {device.name}", unit="structure", dynamic_ncols=True) as meter:
        table = build_table(device, network, plan, table, progress=meter.update)
    stable = table.structures["stable"].mean()
    print(
        f"{network.name}: {len(table) - before} structures measured in {time.monotonic() - begun:.1f} s; "
        f"{table.path} now holds {len(table)}, {stable:.1%} of them stable"
    )


if __name__ == "__main__":
    typer.run(main)
