"""Predicting latency: any ONNX file, any module, or millions of width vectors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pandas as pd

from latency.calibration import Calibration
from latency.errors import DeviceUnavailable, PredictionError, TableError
from latency.kernels import Kernel, PlacedKernel, find_kernels
from latency.network import Network
from latency.pairwise import PairwiseCost, Term
from latency.regression import SHAPE_FIELDS, KernelRegressor
from latency.table import LatencyTable, find_table
from latency.template import SIGNATURE_KEY

if TYPE_CHECKING:
    from torch import nn

OWN_STRUCTURES = 20
"""A network with this many structures in the table is calibrated on its own rows, others on all rows."""

DIRECT_ROWS = 200_000
"""Kernels regressed in one go when widths lie off the genes' choices."""


@dataclass(frozen=True)
class Prediction:
    """Milliseconds per batch. `kernels` has a row for each kernel: kernel, ms, source ("measured" | "regressed")."""

    latency_ms: float
    low_ms: float
    high_ms: float
    kernels: pd.DataFrame

    def __repr__(self) -> str:
        return f"Prediction({self.latency_ms:.4g} ms, {self.low_ms:.4g} … {self.high_ms:.4g})"


@dataclass(frozen=True)
class LatencyCost:
    """Latency of a network's structures: `link.to_ms(score)`, where the score is a sum over gene pairs."""

    score: PairwiseCost
    calibration: Calibration

    def latency_ms(self, indices: np.ndarray) -> np.ndarray:
        """float64[P] of structures given as choice indices int64[P, L]."""
        result: np.ndarray = self.calibration.link.to_ms(self.score.at(indices))
        return result


class LatencyPredictor:
    """Fitted from a `LatencyTable`; see `load_predictor`."""

    def __init__(self, table: LatencyTable) -> None:
        if not len(table):
            raise TableError(f"no latency table at '{table.path}'; build one with: python tools/build_lut.py")
        stable = table.structures["stable"].to_numpy()
        if not stable.any():
            raise PredictionError(f"the table at '{table.path}' holds no stable measurement; build it on a quieter machine.")
        self.table = table
        kernels = table.kernels[stable[table.kernels["structure"]]].reset_index(drop=True)
        self._regressor, self._unseen_ms = KernelRegressor.fit(kernels)
        self._types = kernels["type"].to_numpy(dtype=str)
        self._structure = kernels["structure"].to_numpy()
        self._stable = stable
        self._calibrations: dict[str, Calibration] = {}
        self._costs: dict[tuple[str, int], LatencyCost] = {}

    def predict(
        self, model: str | os.PathLike[str] | bytes | nn.Module, input_shape: Sequence[int] | None = None
    ) -> Prediction:
        """Predict one model.

        Args:
            model: an ONNX file's path or its bytes, or an nn.Module together with `input_shape` [N, C, H, W].

        Raises:
            PredictionError: not a readable model, or a kernel that nothing in the table covers.
        """
        if isinstance(model, bytes | str | os.PathLike):
            proto = _load_onnx(model)
            signature = next((entry.value for entry in proto.metadata_props if entry.key == SIGNATURE_KEY), "")
            return self._predict(find_kernels(proto), signature)
        if input_shape is None:
            raise PredictionError("a module was given without input_shape; pass input_shape=(1, 3, 224, 224), for example.")
        from latency.trace import trace

        network = trace(model, input_shape)
        return self._predict(network.template.kernels, network.signature)

    def predict_widths(self, network: Network, widths: Any) -> np.ndarray:
        """float64[P] milliseconds of structures int[P, L] (or [L]: one structure, P = 1)."""
        array = np.atleast_2d(network.check_widths(widths))
        cost = self.latency_cost(network)
        if all(np.isin(array[:, gene], grid).all() for gene, grid in enumerate(cost.score.choices)):
            return cost.latency_ms(cost.score.indices(array))
        step = max(1, DIRECT_ROWS // len(network.template.kernels))
        return np.concatenate([self._direct(network, array[i : i + step]) for i in range(0, len(array), step)])

    def latency_cost(self, network: Network) -> LatencyCost:
        """The per-gene-pair tables of `network` over its genes' choices; made once."""
        key = (network.signature, network.align)
        if key not in self._costs:
            calibration = self._calibration(network.signature)
            score = network.pairwise(self._terms(network, calibration))
            self._costs[key] = LatencyCost(
                PairwiseCost(score.choices, score.constant + calibration.constant, score.tables), calibration
            )
        return self._costs[key]

    def _terms(self, network: Network, calibration: Calibration) -> list[Term]:
        def cost(kernel: Kernel) -> Any:
            return lambda cin, cout: calibration.factor(kernel.type) * self._kernel_ms(kernel, cin, cout)[0]

        placed = network.template.kernels
        return [Term(axes, cost(one.kernel)) for one, axes in zip(placed, network.template.kernel_axes, strict=True)]

    def _direct(self, network: Network, widths: np.ndarray) -> np.ndarray:
        calibration = self._calibration(network.signature)
        terms = self._terms(network, calibration)
        scores = sum(term.cost(*(axis.length(widths) for axis in term.axes)) for term in terms)
        result: np.ndarray = calibration.link.to_ms(np.broadcast_to(calibration.constant + scores, (len(widths),)))
        return result

    def _predict(self, placed: Sequence[PlacedKernel], signature: str) -> Prediction:
        calibration = self._calibration(signature)
        values = [self._kernel_ms(one.kernel, one.kernel.cin, one.kernel.cout) for one in placed]
        parts = np.array([float(ms) * calibration.factor(one.kernel.type) for (ms, _), one in zip(values, placed, strict=True)])
        latency_ms = float(calibration.link.to_ms(calibration.constant + parts.sum()))
        low, high = (latency_ms * ratio for ratio in calibration.band)
        frame = pd.DataFrame(
            {
                "kernel": [one.kernel.label for one in placed],
                "ms": parts * (latency_ms / parts.sum()),
                "source": ["measured" if bool(measured) else "regressed" for _, measured in values],
            }
        )
        return Prediction(latency_ms, min(low, latency_ms), max(high, latency_ms), frame)

    def _kernel_ms(self, kernel: Kernel, cin: Any, cout: Any) -> tuple[Any, Any]:
        """(ms, measured) of `kernel` with other channel counts, broadcast against each other."""
        cin, cout = np.broadcast_arrays(cin, cout)
        columns = {name: np.full(cin.size, getattr(kernel, name)) for name in SHAPE_FIELDS}
        columns |= {"cin": cin.ravel(), "cout": cout.ravel()}
        ms, measured = self._regressor.predict(kernel.type, columns)
        return ms.reshape(cin.shape), measured.reshape(cin.shape)

    def _calibration(self, signature: str) -> Calibration:
        """Fitted on the network's own structures when there are enough of them, else on all."""
        own = self._stable & (self.table.structures["signature"] == signature).to_numpy()
        chosen, key = (own, signature) if own.sum() >= OWN_STRUCTURES else (self._stable, "")
        if key not in self._calibrations:
            rows = chosen[self._structure]
            position = np.cumsum(chosen) - 1
            self._calibrations[key] = Calibration.fit(
                self._types[rows],
                self._unseen_ms[rows],
                position[self._structure[rows]],
                self.table.structures["latency_ms"].to_numpy()[chosen],
            )
        return self._calibrations[key]


def load_predictor(table: str | os.PathLike[str], root: str | os.PathLike[str] = "lut_data") -> LatencyPredictor:
    """The predictor of a device.

    Args:
        table: a device name ("ort"), looked up under `root`, or the path to a table.
        root: folder of tables.

    Raises:
        TableError: no such table, or one that cannot be read.
    """
    if Path(table).exists():
        return LatencyPredictor(LatencyTable.read(table))
    if os.sep in str(table):
        return LatencyPredictor(LatencyTable.read(table))  # says that nothing is there
    return LatencyPredictor(find_table(str(table), root, _fingerprint_here(str(table))))


def _fingerprint_here(device: str) -> dict[str, str] | None:
    """This machine's fingerprint as `device`; None where that device cannot be opened here."""
    from latency.devices import open_device

    try:
        return open_device(device).fingerprint()
    except DeviceUnavailable:
        return None


def _load_onnx(model: str | os.PathLike[str] | bytes) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    except Exception as error:  # protobuf's and the file system's errors alike
        shown = "the bytes given" if isinstance(model, bytes) else f"'{model}'"
        raise PredictionError(f"{shown} cannot be read as an ONNX model: {error}") from error
