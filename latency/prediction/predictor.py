"""Predicting latency: any ONNX file, any module, or millions of width vectors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pandas as pd

from latency.errors import DeviceUnavailable, PredictionError, TableError
from latency.graph.kernels import DENSE, Kernel, family_of, find_kernels, group_size, operation_of, ungrouped
from latency.graph.network import Network
from latency.graph.pairwise import PairwiseCost, Term, linear_terms
from latency.graph.quantization import slower_int8, stated_precision
from latency.graph.template import SIGNATURE_KEY
from latency.graph.work import SHAPE_FIELDS, Kernels
from latency.measuring.table import LatencyTable, find_table
from latency.prediction.calibration import KernelRows, MonotoneLink
from latency.prediction.correction import Places
from latency.prediction.model import LatencyModel
from latency.prediction.regression import KernelRegressor

if TYPE_CHECKING:
    from torch import nn

OWN_STRUCTURES = 20
"""A network with this many structures in the table has a model of its own, others share one."""

FITTED_STRUCTURES = 300
"""Structures of each network that everything is fitted to; of the others every kernel is looked up."""

SHARED_STRUCTURES = 60
"""Structures of each network that the shared model is fitted to."""

DIRECT_ROWS = 200_000
"""Kernels regressed in one go when widths lie off the genes' choices."""


@dataclass(frozen=True)
class Prediction:
    """Milliseconds per batch. `kernels` has a row for each kernel: kernel, ms, source.

    `source` is "measured" (this very kernel), "regressed" (others of the same operation and window), or "guessed" (only others
    of another window or group size, or with `on_missing="warn"` other operations).
    """

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
    link: MonotoneLink


class LatencyPredictor:
    """Fitted from a `LatencyTable`; see `load_predictor`."""

    def __init__(self, table: LatencyTable) -> None:
        if not len(table):
            raise TableError(f"no latency table at '{table.path}'; build one with: python tools/build_lut.py")
        stable = table.structures["stable"].to_numpy()
        if not stable.any():
            raise PredictionError(f"the table at '{table.path}' holds no stable measurement; build it on a quieter machine.")
        self.table = table
        fitted = stable & _evenly(table.structures["signature"])
        self._structures = table.structures.assign(latency_ms=table.latency_ms)[fitted]
        speed = table.latency_ms / table.structures["latency_ms"].to_numpy()
        kernels = table.kernels.assign(ms=table.kernels["ms"] * speed[table.kernels["structure"]])
        kernels = kernels[stable[kernels["structure"]]]
        mine = fitted[kernels["structure"]]
        self._regressor = KernelRegressor(kernels, mine)
        self._kernels = kernels[mine]
        self._structure = (np.cumsum(fitted) - 1)[self._kernels["structure"]]
        self._models: dict[str, LatencyModel] = {}
        self._costs: dict[tuple[str, int], LatencyCost] = {}

    def ready_for_others(self) -> LatencyPredictor:
        """Itself, the model fitted now that all networks share that have none of their own."""
        self._model("")
        return self

    def predict(
        self,
        model: str | os.PathLike[str] | bytes | nn.Module,
        input_shape: Sequence[int] | None = None,
        *,
        on_missing: str = "raise",
    ) -> Prediction:
        """Predict one model.

        Args:
            model: an ONNX file's path or its bytes (opset 13 or newer, static shapes), or an nn.Module together with
                `input_shape` [N, C, H, W].
            on_missing: what to do about operations that nothing in the table is like: "raise", or "warn" and guess them
                from all others by multiply-adds and bytes; the band says how little that is worth.

        Raises:
            PredictionError: not a readable model, one that states another precision than the table's, or an operation that
                nothing in the table covers.
        """
        if on_missing not in ("raise", "warn"):
            raise PredictionError(f"on_missing='{on_missing}' given; expected 'raise' or 'warn'.")
        if isinstance(model, bytes | str | os.PathLike):
            proto = _load_onnx(model)
            self._require_precision(proto)
            signature = next((entry.value for entry in proto.metadata_props if entry.key == SIGNATURE_KEY), "")
            return self._predict([one.kernel for one in find_kernels(proto)], signature, on_missing)
        if input_shape is None:
            raise PredictionError("a module was given without input_shape; pass input_shape=(1, 3, 224, 224), for example.")
        from latency.tracing.trace import trace

        network = trace(model, input_shape)
        return self._predict([one.kernel for one in network.template.kernels], network.signature, on_missing)

    def predict_widths(self, network: Network, widths: Any) -> np.ndarray:
        """float64[P] milliseconds of structures int[P, L] (or [L]: one structure, P = 1)."""
        array = np.atleast_2d(network.check_widths(widths))
        cost = self.latency_cost(network)
        scores = cost.score.at_widths(array)
        if scores is None:  # widths off the genes' choices
            step = max(1, DIRECT_ROWS // len(network.template.kernels))
            parts = [array[start : start + step] for start in range(0, len(array), step)]
            scores = np.concatenate([self._summed(network, part).scores for part in parts])
        result: np.ndarray = cost.link.to_ms(scores)
        return result

    def predict_band(self, network: Network, widths: Any) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), float64[P] each: where nine in ten measurements of structures int[P, L] are to be expected."""
        array = np.atleast_2d(network.check_widths(widths))
        return self._band(self._summed(network, array))

    def deviation(self, network: Network, widths: Any) -> np.ndarray:
        """float64[P]: relative standard deviation that a measurement of structures int[P, L] is expected to have."""
        return self._deviation(self._summed(network, np.atleast_2d(network.check_widths(widths))))

    def profiled_ms(self, network: Network, widths: Any) -> np.ndarray:
        """float64[P]: what the kernels' shares of structures int[P, L] add up to, before end-to-end times correct it."""
        flat = self._summed(network, np.atleast_2d(network.check_widths(widths))).kernels
        return self._regressor.predict(flat).reshape(-1, len(network.template.kernels)).sum(axis=1)

    def kernel_grid(self, network: Network, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What one kernel of `network` costs for all its channels: cin int64[A], cout int64[B], ms float64[A, B].

        Args:
            place: its position in `network.template.kernels`. Channels run over the genes' choices.
        """
        grid = [
            np.unique([axis.length(np.array(widths)) for widths in _each_choice(network)])
            for axis in network.template.kernel_axes[place]
        ]
        cin, cout = np.meshgrid(*grid, indexing="ij")
        kernel = network.template.kernels[place].kernel
        summed = self._sum(self._model(network.signature), [kernel], cin.reshape(-1, 1), cout.reshape(-1, 1), [place])
        return grid[0], grid[1], summed.costs.reshape(cin.shape)

    def latency_cost(self, network: Network) -> LatencyCost:
        """The per-gene-pair tables of `network` over its genes' choices; made once."""
        key = (network.signature, network.align)
        if key not in self._costs:
            self._require_known([one.kernel for one in network.template.kernels], "raise")
            model = self._model(network.signature)
            terms = [term for place in range(len(network.template.kernels)) for term in self._terms(network, model, place)]
            score = network.pairwise(terms)
            constant = score.constant + model.calibration.constant
            self._costs[key] = LatencyCost(PairwiseCost(score.choices, constant, score.tables), model.calibration.link)
        return self._costs[key]

    def _terms(self, network: Network, model: LatencyModel, place: int) -> list[Term]:
        kernel, axes = network.template.kernels[place].kernel, network.template.kernel_axes[place]

        def cost(cin: Any, cout: Any) -> np.ndarray:
            cin, cout = np.broadcast_arrays(cin, cout)
            summed = self._sum(model, [kernel], cin.reshape(-1, 1), cout.reshape(-1, 1), [place])
            return summed.costs.reshape(cin.shape)

        term = Term(axes, cost)
        if len(term.genes) <= 2:
            return [term]
        dense = operation_of(kernel.type) in DENSE
        return linear_terms(*axes, cost, np.array(network.min_widths), dense=dense)

    def _predict(self, kernels: Sequence[Kernel], signature: str, on_missing: str) -> Prediction:
        self._require_known(kernels, on_missing)
        cin, cout = (np.array([[getattr(kernel, name) for kernel in kernels]]) for name in ("cin", "cout"))
        model = self._model(signature)
        if model.types and model.types != tuple(kernel.type for kernel in kernels):
            model = self._model("")  # somebody has changed the graph since
        summed = self._sum(model, kernels, cin, cout)
        low, high = self._band(summed)
        frame = pd.DataFrame(
            {
                "kernel": [kernel.label for kernel in kernels],
                "ms": summed.costs[0] * (summed.latency_ms[0] / summed.costs[0].sum()),
                "source": [self._regressor.source(kernel) for kernel in kernels],
            }
        )
        return Prediction(float(summed.latency_ms[0]), float(low[0]), float(high[0]), frame)

    def _require_known(self, kernels: Sequence[Kernel], on_missing: str) -> None:
        unknown = sorted({kernel.type for kernel in kernels if not self._regressor.covers(kernel.type)})
        if not unknown:
            return
        text = (
            f"no kernel of type {', '.join(unknown)} has been measured on this device "
            f"(there are: {', '.join(self._regressor.types)})"
        )
        if on_missing == "raise":
            raise PredictionError(
                f"{text}; build the table with a network that contains one: python tools/build_lut.py --network NAME, "
                "or pass on_missing='warn' for a guess."
            )
        warnings.warn(f"{text}; guessed.", stacklevel=4)

    def _require_precision(self, model: onnx.ModelProto) -> None:
        stated = stated_precision(model)
        mine = self.table.fingerprint.get("precision", stated)
        if stated not in ("fp32", mine):
            raise PredictionError(
                f"the model computes in {stated}, and the table at '{self.table.path}' was measured in {mine}; take or build "
                f"another: python tools/build_lut.py --precision {stated}."
            )
        if unlike := slower_int8(model):
            raise PredictionError(
                f"the model computes with {unlike}, which may take many times as long as what the table at '{self.table.path}' "
                "holds; quantize it with weights in int8 and activations in uint8."
            )

    def _summed(self, network: Network, widths: np.ndarray) -> _Summed:
        kernels = [one.kernel for one in network.template.kernels]
        self._require_known(kernels, "raise")
        lengths = [[axis.length(widths) for axis in pair] for pair in network.template.kernel_axes]
        cin, cout = (np.stack([np.broadcast_to(one[side], len(widths)) for one in lengths], axis=1) for side in (0, 1))
        return self._sum(self._model(network.signature), kernels, cin, cout)

    def _sum(
        self,
        model: LatencyModel,
        kernels: Sequence[Kernel],
        cin: np.ndarray,
        cout: np.ndarray,
        places: Sequence[int] | None = None,
    ) -> _Summed:
        """P structures of K kernels each, with channels int[P, K]; `places` are the kernels' in their network."""
        flat = _flattened(kernels, cin, cout)
        rows = KernelRows(flat.types, self._regressor.predict(flat), flat.terms(), np.zeros(len(flat.types), dtype=np.int64))
        base = model.calibration.costs(rows).reshape(cin.shape)
        return _Summed(model, flat, cin, cout, base, model.corrected(base, cin, cout, places))

    def _deviation(self, summed: _Summed) -> np.ndarray:
        model = summed.model
        if model.correction is not None:
            return model.correction.deviation(summed.places, summed.latency_ms)
        return np.sqrt(model.spread**2 + self._kernel_variance(summed))

    def _kernel_variance(self, summed: _Summed) -> np.ndarray:
        """float64[P]: relative variance from not knowing the kernels. Those of one operation are wrong together."""
        deviation = self._regressor.deviation(summed.kernels) * summed.places.shares.ravel()
        families, family = np.unique([family_of(one) for one in summed.kernels.types], return_inverse=True)
        structure = np.repeat(np.arange(len(summed.cin)), summed.cin.shape[1])
        sums = np.zeros((len(summed.cin), len(families)))
        np.add.at(sums, (structure, family), deviation)
        result: np.ndarray = (sums**2).sum(axis=1)
        return result

    def _band(self, summed: _Summed) -> tuple[np.ndarray, np.ndarray]:
        deviation = self._deviation(summed)
        low, high = (summed.model.reach(quantile, deviation) for quantile in summed.model.band)
        return summed.latency_ms * np.exp(low), summed.latency_ms * np.exp(high)

    def _model(self, signature: str) -> LatencyModel:
        """The network's own where there are enough of its structures in the table, else the shared one."""
        own = (self._structures["signature"] == signature).to_numpy()
        key = signature if own.sum() >= OWN_STRUCTURES else ""
        if key not in self._models:
            self._models[key] = self._own_model(own) if key else self._shared_model()
        return self._models[key]

    def _own_model(self, own: np.ndarray) -> LatencyModel:
        rows, kernels = self._kernels_of(own)
        cin, cout = (kernels.columns[name].reshape(own.sum(), -1) for name in ("cin", "cout"))
        return LatencyModel.of_network(rows, cin, cout, self._structures["latency_ms"].to_numpy()[own])

    def _shared_model(self) -> LatencyModel:
        groups = self._structures.groupby("signature", sort=False)
        chosen = (groups.cumcount() < SHARED_STRUCTURES).to_numpy()
        return LatencyModel.of_others(self._kernels_of(chosen)[0], self._structures["latency_ms"].to_numpy()[chosen])

    def _kernels_of(self, chosen: np.ndarray) -> tuple[KernelRows, Kernels]:
        """The kernels of the fitted structures in the mask `chosen`, as they ran."""
        rows = np.flatnonzero(chosen[self._structure])
        kernels, structure = Kernels.of(self._kernels.iloc[rows]), (np.cumsum(chosen) - 1)[self._structure[rows]]
        return KernelRows(kernels.types, self._regressor.unseen_ms(rows), kernels.terms(), structure), kernels


@dataclass(frozen=True)
class _Summed:
    """P structures of K kernels, P × K in all: channels int[P, K], costs float64[P, K] before and after the correction."""

    model: LatencyModel
    kernels: Kernels
    cin: np.ndarray
    cout: np.ndarray
    base: np.ndarray
    costs: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        return self.model.calibration.constant + self.costs.sum(axis=1)

    @property
    def latency_ms(self) -> np.ndarray:
        result: np.ndarray = self.model.calibration.link.to_ms(self.scores)
        return result

    @property
    def places(self) -> Places:
        scores = self.model.calibration.constant + self.base.sum(axis=1)
        return Places(self.base / scores[:, None], np.log(self.cin), np.log(self.cout))


def _evenly(signatures: pd.Series) -> np.ndarray:
    """bool[S]: FITTED_STRUCTURES or a few more of each network, evenly spread over its rows."""
    groups = signatures.groupby(signatures, sort=False)
    step = np.maximum(1, groups.transform("size").to_numpy() // FITTED_STRUCTURES)
    result: np.ndarray = groups.cumcount().to_numpy() % step == 0
    return result


def _each_choice(network: Network) -> Iterator[tuple[int, ...]]:
    """The unpruned network with one gene changed, to each of its choices."""
    for index, gene in enumerate(network.genes):
        for choice in gene.choices:
            yield (*network.max_widths[:index], choice, *network.max_widths[index + 1 :])


def _flattened(kernels: Sequence[Kernel], cin: np.ndarray, cout: np.ndarray) -> Kernels:
    """P × K kernels, all places of the first structure first. A grouped convolution of one group is an ordinary one."""
    columns = {name: np.tile([getattr(kernel, name) for kernel in kernels], len(cin)) for name in SHAPE_FIELDS}
    columns |= {"cin": cin.ravel(), "cout": cout.ravel()}
    types = np.tile(np.array([kernel.type for kernel in kernels], dtype=object), len(cin))
    for kernel in {kernel.type for kernel in kernels if kernel.type.startswith("groupconv")}:
        types[(types == kernel) & (columns["cin"] == group_size(kernel))] = ungrouped(kernel)
    return Kernels(types.astype(str), columns)


def load_predictor(table: str | os.PathLike[str], root: str | os.PathLike[str] = "lut_data") -> LatencyPredictor:
    """The predictor of a device, all fitted that networks of which nothing is in the table need.

    Args:
        table: a device name ("ort"), looked up under `root`, or the path to a table.
        root: folder of tables.

    Raises:
        TableError: no such table, or one that cannot be read.
    """
    return LatencyPredictor(_found(table, root)).ready_for_others()


def _found(table: str | os.PathLike[str], root: str | os.PathLike[str]) -> LatencyTable:
    if Path(table).exists() or os.sep in str(table):
        return LatencyTable.read(table)  # says so where nothing is there
    return find_table(str(table), root, _fingerprint_here(str(table)))


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
