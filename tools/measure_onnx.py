"""python tools/measure_onnx.py winner.onnx uniform.onnx --device trt: how fast networks are, where they will run.

Needs no PyTorch, so that what was searched for elsewhere can be measured on a board that has none; but for --network, which
writes networks as others do and shows what a table makes of them.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latency.errors import MeasurementError, PredictionError, reported_by_command
from latency.measuring.speed import difference
from search import options

if TYPE_CHECKING:
    from latency.prediction.predictor import LatencyPredictor


def main(
    files: Annotated[list[Path] | None, typer.Argument(help="ONNX files, with fixed sizes.")] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="Besides, a network as PyTorch's older exporter writes it; may be given several times."),
    ] = None,
    input_size: options.InputSize = 224,
    device: options.DeviceName = "ort",
    threads: options.Threads = 1,
    precision: options.Precision = "fp32",
    lut: options.Lut = Path("lut_data"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Measure FILES in one session, and say what the device's table, where there is one, makes of them."""
    with reported_by_command():
        from latency import LatencyPredictor, LatencyTable, open_device
        from search.report import write_json

        opened = open_device(device, threads=threads, precision=precision, lut=lut)
        models = {str(file): _read(file) for file in files or ()} | {one: _exported(one, input_size) for one in network or ()}
        if not models:
            raise MeasurementError("nothing to measure; expected ONNX files, or --network NAME.")
        table = LatencyTable.open(lut, opened.fingerprint())
        predictor = LatencyPredictor(table) if len(table) else None
        rows = {}
        for name, measured in zip(models, opened.measure_all(list(models.values())), strict=True):
            rows[name] = {"measured_ms": measured.latency_ms, "stable": measured.stable} | _predicted(predictor, models[name])
            if not math.isnan(core := measured.core_ms / table.core_ms):
                rows[name]["core"] = core
            print(f"{name}: {_said(rows[name])}", flush=True)
        if json_file:
            write_json(json_file, rows)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise MeasurementError(f"'{file}' cannot be read: {error.strerror}; expected an ONNX file.") from error


def _exported(name: str, input_size: int) -> bytes:
    import torch

    from pruning.networks import load

    image = torch.zeros(1, 3, input_size, input_size)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "network.onnx"
        torch.onnx.export(load(name).eval(), (image,), file, dynamo=False, opset_version=17)
        return file.read_bytes()


def _predicted(predictor: LatencyPredictor | None, model: bytes) -> dict[str, Any]:
    """Milliseconds and band by the table, and how much of it is guessed; or why it says nothing."""
    if predictor is None:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # how much is guessed is said
            prediction = predictor.predict(model, on_missing="warn")
    except PredictionError as error:
        return {"not_predicted": str(error)}
    guessed = prediction.kernels["ms"][prediction.kernels["source"] == "guessed"].sum() / prediction.latency_ms
    band = {"low_ms": prediction.low_ms, "high_ms": prediction.high_ms}
    return {"predicted_ms": prediction.latency_ms, **band, "guessed": float(guessed)}


def _said(row: dict[str, Any]) -> str:
    said = f"{row['measured_ms']:.4g} ms" + ("" if row["stable"] else " (disturbed, measure again)")
    if core := difference(row.get("core", 1.0)):
        said += f" ({core})"
    if "not_predicted" in row:
        said += f"; not predicted: {row['not_predicted']}"
    if "predicted_ms" in row:
        said += f"; predicted {row['predicted_ms']:.4g} ms ({row['low_ms']:.4g} … {row['high_ms']:.4g})"
    if row.get("guessed"):
        said += f", {row['guessed']:.0%} of it guessed"
    return said


if __name__ == "__main__":
    typer.run(main)
