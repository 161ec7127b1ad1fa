"""python tools/validate_lut.py --device ort --network mobilenet_v1: is the predictor right, on structures it never saw?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from latency.errors import reported_by_command
from search import options

Option = typer.Option


def main(
    device: options.DeviceName = "ort",
    network: options.NetworkName = "mobilenet_v1",
    samples: Annotated[int, Option(min=2, help="Random structures.")] = 50,
    pairs: Annotated[int, Option(min=2, help="Pairs of structures that differ in one gene.")] = 20,
    seed: Annotated[int, Option(min=0, help="Of the random structures.")] = 0,
    input_size: options.InputSize = 224,
    batch: options.Batch = 1,
    num_classes: options.NumClasses = 1000,
    threads: options.Threads = 1,
    precision: options.Precision = "fp32",
    align: options.Align = None,
    lut: options.Lut = Path("lut_data"),
    json_out: Annotated[Path | None, Option("--json", help="Also write all figures and rows to this file.")] = None,
) -> None:
    """Measure SAMPLES structures that the table does not hold, twice, and compare. With --json it may be interrupted: the same
    command goes on."""
    with reported_by_command():
        from latency import open_device, trace
        from latency.alignment import alignment_of
        from latency.measuring.kept import KeptMeasurements
        from latency.measuring.table import LatencyTable
        from latency.prediction.predictor import LatencyPredictor
        from latency.validation import validated
        from pruning.networks import load
        from search.report import write_json

        opened = open_device(device, threads=threads, precision=precision, lut=lut)
        shape = (batch, 3, input_size, input_size)
        predictor = LatencyPredictor(LatencyTable.open(lut, opened.fingerprint()))
        module = load(network, num_classes)
        multiple = align or alignment_of(opened, lut)
        traced = trace(module, shape, align=multiple, name=network)
        kept = KeptMeasurements(opened, json_out and json_out.with_suffix(".part"))
        with tqdm(total=3 * samples + 2 * pairs, desc="measuring", dynamic_ncols=True) as meter:
            results = validated(kept, traced, predictor, samples, pairs, seed, meter.update)
        print(
            f"{network} at {input_size}x{input_size}, widths in multiples of {multiple}, batch {batch}, {threads} thread(s): "
            f"{len(results['rows'])} structures never profiled, {predictor.table.count(traced)} in the table"
        )
        _show(results["figures"])
        if json_out is not None:
            setting = {"network": network, "input_size": input_size, "align": multiple, "batch": batch, "threads": threads}
            write_json(json_out, setting | {"seed": seed} | results)
            kept.discard()


def _show(figures: Mapping[str, Mapping[str, Any]]) -> None:
    for title, group in figures.items():
        print(f"  {title}")
        for name, values in group.items():
            print(f"    {name:17}" + "  ".join(f"{key} {value:.3f}" for key, value in values.items()))


if __name__ == "__main__":
    typer.run(main)
