"""How fast a network is on a device: tracing, measuring, tables, prediction.

Importing this package is quick: torch, scikit-learn, onnxruntime and tensorrt load when a name that needs them is used.

    >>> import latency
    >>> net = latency.trace(module, input_shape=(1, 3, 224, 224))
    >>> predictor = latency.load_predictor("ort")
    >>> predictor.predict_widths(net, net.max_widths)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latency.errors import (
    DeviceUnavailable,
    MeasurementError,
    MillipruneError,
    PredictionError,
    TableError,
    TraceError,
    WidthsError,
)

if TYPE_CHECKING:
    from latency.devices import Device, open_device
    from latency.graph.network import Gene, Network
    from latency.measuring.measurement import Measurement
    from latency.measuring.table import LatencyTable
    from latency.prediction.predictor import LatencyPredictor, Prediction, load_predictor
    from latency.tracing.trace import trace

__all__ = [
    "Device",
    "DeviceUnavailable",
    "Gene",
    "LatencyPredictor",
    "LatencyTable",
    "Measurement",
    "MeasurementError",
    "MillipruneError",
    "Network",
    "Prediction",
    "PredictionError",
    "TableError",
    "TraceError",
    "WidthsError",
    "load_predictor",
    "open_device",
    "trace",
]

_HOMES = {
    "Device": "devices",
    "open_device": "devices",
    "Gene": "graph.network",
    "Network": "graph.network",
    "LatencyPredictor": "prediction.predictor",
    "Prediction": "prediction.predictor",
    "load_predictor": "prediction.predictor",
    "Measurement": "measuring.measurement",
    "LatencyTable": "measuring.table",
    "trace": "tracing.trace",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latency' has no attribute '{name}'")
    value = getattr(import_module(f"latency.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
