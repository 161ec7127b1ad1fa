"""python tools/plot_lut.py --layer 5 --validation v.json --out lut.png: what a table says, as a picture.

Needs matplotlib: pip install "milliprune[plot]".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latency.errors import MillipruneError, reported_by_command
from search import options

if TYPE_CHECKING:
    from latency.graph.network import Network
    from latency.prediction.predictor import LatencyPredictor

Option = typer.Option


def main(
    network: options.NetworkName = "mobilenet_v1",
    layer: Annotated[int, Option(min=0, help="Position of the kernel in the network.")] = 6,
    input_size: options.InputSize = 224,
    batch: options.Batch = 1,
    num_classes: options.NumClasses = 1000,
    align: Annotated[int, Option(min=1, help="Widths in multiples of this.")] = 1,
    lut: Annotated[str, Option(help="A device under lut_data/, or the path of a table.")] = "ort",
    validation: Annotated[Path | None, Option(help="JSON of tools/validate_lut.py: predicted against measured.")] = None,
    out: Annotated[Path, Option(help="PNG, SVG or PDF.")] = Path("lut.png"),
) -> None:
    """Draw one layer's milliseconds over its channels, and beside it a validation, where one is given."""
    with reported_by_command():
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise MillipruneError('drawing needs matplotlib; install it with: pip install "milliprune[plot]"') from None
        import latency
        from pruning.networks import load

        traced = latency.trace(load(network, num_classes), (batch, 3, input_size, input_size), align=align, name=network)
        count = len(traced.template.kernels)
        if layer >= count:
            raise MillipruneError(f"--layer {layer} given; {network} has the kernels 0 … {count - 1}.")
        rows = None if validation is None else _rows(validation)
        figure, axes = plt.subplots(1, 1 if rows is None else 2, figsize=(5.5 if rows is None else 11, 4.6), squeeze=False)
        _draw_layer(axes[0][0], traced, latency.load_predictor(lut), layer)
        if rows is not None:
            _draw_validation(axes[0][1], rows)
        figure.tight_layout()
        try:
            figure.savefig(out, dpi=110)
        except (OSError, ValueError) as error:
            raise MillipruneError(f"cannot draw to '{out}': {error}. Choose another --out.") from error
        print(out)


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    except (OSError, ValueError, KeyError) as error:
        raise MillipruneError(f"'{file}' is no output of tools/validate_lut.py --json ({error}).") from error
    return rows


def _draw_layer(axes: Any, network: Network, predictor: LatencyPredictor, layer: int) -> None:
    cin, cout, ms = predictor.kernel_grid(network, layer)
    if min(ms.shape) < 2:
        raise MillipruneError(f"--layer {layer} given; {network.template.kernels[layer].kernel.label} has nothing to vary.")
    mesh = axes.pcolormesh(cout, cin, ms * 1000, shading="nearest", cmap="viridis")
    axes.figure.colorbar(mesh, ax=axes, label="µs")
    axes.set(xlabel="output channels", ylabel="input channels", title=network.template.kernels[layer].kernel.label)


def _draw_validation(axes: Any, rows: list[dict[str, Any]]) -> None:
    measured, predicted, low, high = (
        [row[key] for row in rows] for key in ("measured_ms", "predicted_ms", "low_ms", "high_ms")
    )
    below = [p - one for p, one in zip(predicted, low, strict=True)]
    above = [one - p for p, one in zip(predicted, high, strict=True)]
    ends = [0.9 * min(measured), 1.1 * max(measured)]
    axes.plot(ends, ends, color="0.6", linewidth=1)
    axes.errorbar(measured, predicted, [below, above], fmt="o", markersize=4, linewidth=1, color="tab:blue")
    axes.set(xlabel="measured ms", ylabel="predicted ms, 90 % band", title=f"{len(rows)} structures never profiled")
    axes.set(xscale="log", yscale="log")


if __name__ == "__main__":
    typer.run(main)
