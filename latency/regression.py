"""What one kernel costs: a physical base learned by least squares, corrected by trees where the rows say otherwise.

The base (constant + multiply-adds on padded channels + bytes) extrapolates sanely; the trees know the steps and cliffs
(alignment, layout conversions) inside the range that was measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls
from sklearn.ensemble import ExtraTreesRegressor

from latency.errors import PredictionError
from latency.kernels import KERNEL_FIELDS

SHAPE_FIELDS = tuple(name for name in KERNEL_FIELDS if name != "type")
BLOCKS = (4, 8, 16)
"""Channel blocks of vector units; the largest is what padded sizes are computed with."""

TREES = 100
RESOLUTION_MS = 1e-3
"""Profilers count microseconds: differences far below that carry no information."""

Columns = Mapping[str, np.ndarray]


def kernel_area(kernel_type: str) -> int:
    """Positions of the sliding window: 9 for "conv3x3s2+relu", 1 without a window."""
    window = re.search(r"(\d+)x(\d+)s", kernel_type)
    return int(window.group(1)) * int(window.group(2)) if window else 1


def physical_terms(kernel_type: str, columns: Columns) -> np.ndarray:
    """float64[N, 5]: 1, multiply-adds, the same on padded channels, weights, activations read and written."""
    batch, cin, cout = (columns[name].astype(np.float64) for name in ("batch", "cin", "cout"))
    inside = columns["height"] * columns["width"] * batch
    outside = columns["out_height"] * columns["out_width"] * batch
    mixes = kernel_type.startswith(("conv", "groupconv", "gemm", "matmul"))
    taps = kernel_area(kernel_type) * (cin if mixes else 1)
    padded = kernel_area(kernel_type) * (_padded(cin) if mixes else 1)
    terms = (np.ones_like(cin), taps * cout * outside, padded * _padded(cout) * outside, taps * cout,
             cin * inside + cout * outside)  # fmt: skip
    return np.stack(np.broadcast_arrays(*terms), axis=1)


def _padded(channels: np.ndarray) -> np.ndarray:
    return np.ceil(channels / BLOCKS[-1]) * BLOCKS[-1]


def _features(kernel_type: str, columns: Columns) -> np.ndarray:
    remainders = [columns[name] % block for name in ("cin", "cout") for block in BLOCKS]
    shapes = [columns[name] for name in SHAPE_FIELDS]
    return np.log1p(np.hstack([physical_terms(kernel_type, columns)[:, 1:], np.stack(shapes + remainders, axis=1)]))


class TypeRegressor:
    """Milliseconds of all kernels of one type."""

    def __init__(self, kernel_type: str, columns: Columns, ms: np.ndarray) -> None:
        self.type = kernel_type
        terms = physical_terms(kernel_type, columns)
        weight = 1 / (ms + 3 * RESOLUTION_MS)  # relative errors count, but not below the profiler's resolution
        scale = terms.mean(axis=0) + 1e-12
        self._coefficients = nnls(terms / scale * weight[:, None], ms * weight)[0] / scale
        self._trees: Any = None
        self.out_of_bag_ms = self._base(terms)
        if len(ms) >= 10:
            self._trees = ExtraTreesRegressor(
                TREES, min_samples_leaf=2, bootstrap=True, max_samples=0.8, oob_score=True, random_state=0
            )
            target = np.log((ms + RESOLUTION_MS) / (self.out_of_bag_ms + RESOLUTION_MS))
            self._trees.fit(_features(kernel_type, columns), target, sample_weight=ms * weight)
            self.out_of_bag_ms = self._corrected(self.out_of_bag_ms, self._trees.oob_prediction_)

    def predict(self, columns: Columns) -> np.ndarray:
        """float64[N] for shape columns of N kernels."""
        base = self._base(physical_terms(self.type, columns))
        return base if self._trees is None else self._corrected(base, self._trees.predict(_features(self.type, columns)))

    def _base(self, terms: np.ndarray) -> np.ndarray:
        return np.maximum(terms @ self._coefficients, RESOLUTION_MS / 10)

    def _corrected(self, base: np.ndarray, log_ratio: np.ndarray) -> np.ndarray:
        return np.maximum((base + RESOLUTION_MS) * np.exp(log_ratio) - RESOLUTION_MS, base / 5)


@dataclass(frozen=True)
class KernelRegressor:
    """All types of one table: exact kernels that were measured lean on their own rows, the rest is regressed."""

    types: Mapping[str, TypeRegressor]
    measured: pd.DataFrame  # index: KERNEL_FIELDS; columns: ms (mean), rows (count)

    PRIOR_ROWS = 2
    """The regression counts as much as this many measured rows of the very kernel."""

    @classmethod
    def fit(cls, kernels: pd.DataFrame) -> tuple[KernelRegressor, np.ndarray]:
        """The regressor, and float64[N] its ms for each row of `kernels` as if that row had not been seen."""
        types = {}
        unseen = np.zeros(len(kernels))
        for kernel_type, index in kernels.groupby("type").indices.items():
            rows = kernels.iloc[index]
            types[str(kernel_type)] = TypeRegressor(str(kernel_type), _columns(rows), rows["ms"].to_numpy())
            unseen[index] = types[str(kernel_type)].out_of_bag_ms
        groups = kernels.groupby(list(KERNEL_FIELDS))["ms"]
        measured = pd.DataFrame({"ms": groups.mean(), "rows": groups.count()})
        others = groups.transform("count").to_numpy() - 1
        sum_of_others = groups.transform("sum").to_numpy() - kernels["ms"].to_numpy()
        return cls(types, measured), (sum_of_others + cls.PRIOR_ROWS * unseen) / (others + cls.PRIOR_ROWS)

    def predict(self, kernel_type: str, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        """(ms float64[N], measured bool[N]) of N kernels of one type.

        Raises:
            PredictionError: no row of this type, nor of the same operation with another epilogue.
        """
        regressor = self.types.get(kernel_type) or self._relative(kernel_type)
        keys = pd.MultiIndex.from_arrays([[kernel_type] * len(columns["cin"]), *(columns[name] for name in SHAPE_FIELDS)])
        rows = self.measured.reindex(keys).fillna(0.0)
        count = rows["rows"].to_numpy()
        total = rows["ms"].to_numpy() * count + self.PRIOR_ROWS * regressor.predict(columns)
        return total / (count + self.PRIOR_ROWS), count > 0

    def _relative(self, kernel_type: str) -> TypeRegressor:
        family = kernel_type.partition("+")[0]
        relatives = [one for name, one in self.types.items() if name.partition("+")[0] == family]
        if not relatives:
            raise PredictionError(
                f"no kernel of type '{kernel_type}' has been measured on this device (there are: "
                f"{', '.join(sorted(self.types))}); build the table with a network that contains one: "
                "python tools/build_lut.py --network NAME"
            )
        return relatives[0]


def _columns(frame: pd.DataFrame) -> Columns:
    return {name: frame[name].to_numpy() for name in SHAPE_FIELDS}
