"""python tools/check_device.py --device trt: everything that a device has to show, in one command and one file.

For each precision, network and batch size: a quick table, its validation on structures never profiled, and whether the
device's own clock agrees with the wall's. Interrupted, it goes on: what has been measured is in the table, what has been
validated in the file. Send both to contribute a device (lut_data/README.md).
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from latency.errors import reported_by_command
from search import options

if TYPE_CHECKING:
    from latency.measuring.kept import KeptMeasurements

Option = typer.Option


def main(
    device: options.DeviceName = "ort",
    network: Annotated[
        list[str] | None, Option(help="May be given several times (default: mobilenet_v1, mobilenet_v2, resnet50).")
    ] = None,
    batch: Annotated[list[int] | None, Option(help="May be given several times (default: 1, 32).")] = None,
    precision: Annotated[list[str] | None, Option(help="May be given several times (default: fp32).")] = None,
    input_size: options.InputSize = 224,
    samples: Annotated[int, Option(min=2, help="Structures never profiled, of each network.")] = 50,
    threads: options.Threads = 1,
    lut: options.Lut = Path("lut_data"),
    out: Annotated[Path, Option(help="Folder of the results, one file a device and precision.")] = Path("results/devices"),
) -> None:
    """Measure and validate DEVICE, and print a table."""
    with reported_by_command():
        from latency import open_device
        from latency.measuring.fingerprint import slug
        from latency.measuring.kept import KeptMeasurements
        from search.report import read_json, write_json

        for kind in precision or ["fp32"]:
            opened = open_device(device, threads=threads, precision=kind, lut=lut)
            file = out / f"{slug(opened.fingerprint())}.json"
            results: dict[str, Any] = {"device": opened.fingerprint(), "networks": {}}
            if file.exists():
                results = read_json(file)
            for name, images in itertools.product(network or ["mobilenet_v1", "mobilenet_v2", "resnet50"], batch or [1, 32]):
                key = f"{name}, batch {images}, {input_size}x{input_size}"
                if key not in results["networks"]:
                    kept = KeptMeasurements(opened, file.with_suffix(".part"))
                    results["networks"][key] = _checked(kept, name, (images, 3, input_size, input_size), samples, lut)
                    write_json(file, results)
                    kept.discard()
                print(_line(key, kind, results["networks"][key]), flush=True)


def _checked(kept: KeptMeasurements, name: str, shape: tuple[int, ...], samples: int, lut: Path) -> dict[str, Any]:
    from latency import trace
    from latency.alignment import alignment_of
    from latency.build import build_table
    from latency.coverage import quick_plan
    from latency.measuring.table import LatencyTable
    from latency.prediction.predictor import LatencyPredictor
    from latency.validation import validated
    from pruning.networks import load

    device = kept.device
    multiple = alignment_of(device, lut)
    network = trace(load(name), shape, align=multiple, name=name)
    plan, table, pairs = quick_plan(network), LatencyTable.open(lut, device.fingerprint()), samples // 4
    begun = time.monotonic()
    with tqdm(total=len(plan), desc=f"{name}, batch {shape[0]}: table", unit="structure", dynamic_ncols=True) as meter:
        table = build_table(device, network, plan, table, progress=meter.update)
    seconds = time.monotonic() - begun
    with tqdm(total=2 * samples + 2 * pairs, desc=f"{name}, batch {shape[0]}: validation", dynamic_ncols=True) as meter:
        results = validated(kept, network, LatencyPredictor(table), samples, pairs, 0, meter.update, isolated=False)
    own, wall = device.by_the_wall_ms(network.onnx(network.max_widths))
    clocks = {"own_ms": own, "wall_ms": wall}
    return results | {"align": multiple, "table_s": seconds, "refused": len(table.refused), "clocks": clocks}


def _line(key: str, precision: str, checked: dict[str, Any]) -> str:
    predicted, again = (checked["figures"]["structures"][name] for name in ("predictor", "measured again"))
    clocks = checked["clocks"]
    return (
        f"| {key}, {precision} | {clocks['own_ms']:.4g} ms | MAPE {predicted['mape']:.1%} | ±5 % {predicted['within_5']:.0%} "
        f"| ±10 % {predicted['within_10']:.0%} | band {predicted['band_coverage']:.0%} | again {again['mape']:.1%} "
        f"| wall {clocks['wall_ms'] / clocks['own_ms'] - 1:+.1%} | table {checked['table_s']:.0f} s |"
    )


if __name__ == "__main__":
    typer.run(main)
