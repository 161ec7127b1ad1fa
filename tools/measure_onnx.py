"""python tools/measure_onnx.py winner.onnx uniform.onnx --device trt: how fast networks are, where they will run.

Needs no PyTorch, so that what was searched for elsewhere can be measured on a board that has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latency.errors import MeasurementError, PredictionError, reported_by_command
from search import options

if TYPE_CHECKING:
    from latency.measurement import Measurement
    from latency.predictor import LatencyPredictor


def main(
    files: Annotated[list[Path], typer.Argument(help="ONNX files, with fixed sizes.")],
    device: options.DeviceName = "ort",
    threads: options.Threads = 1,
    precision: options.Precision = "fp32",
    lut: options.Lut = Path("lut_data"),
) -> None:
    """Measure FILES in one session, and say what the device's table, where there is one, makes of them."""
    with reported_by_command():
        from latency import LatencyPredictor, LatencyTable, open_device

        opened = open_device(device, threads=threads, precision=precision, lut=lut)
        models = [_read(file) for file in files]
        table = LatencyTable.open(lut, opened.fingerprint())
        predictor = LatencyPredictor(table) if len(table) else None
        for file, model, measured in zip(files, models, opened.measure_all(models), strict=True):
            print(f"{file}: {_said(measured)}{_predicted(predictor, model)}")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise MeasurementError(f"'{file}' cannot be read: {error.strerror}; expected an ONNX file.") from error


def _said(measured: Measurement) -> str:
    return f"{measured.latency_ms:.4g} ms" + ("" if measured.stable else " (disturbed, measure again)")


def _predicted(predictor: LatencyPredictor | None, model: bytes) -> str:
    if predictor is None:
        return ""
    try:
        prediction = predictor.predict(model)
    except PredictionError as error:
        return f"; the table cannot tell: {error}"
    return f"; predicted {prediction.latency_ms:.4g} ms ({prediction.low_ms:.4g} … {prediction.high_ms:.4g})"


if __name__ == "__main__":
    typer.run(main)
