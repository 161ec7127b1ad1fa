"""What the shape of a kernel says of its cost: multiply-adds, padding, bytes; and their prices by least squares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from latency.kernels import KERNEL_FIELDS, family_of, group_size, operation_of, window_area

SHAPE_FIELDS = tuple(name for name in KERNEL_FIELDS if name != "type")
BLOCKS = (4, 8, 16)
"""Channel blocks of vector units; the largest is what padded sizes are computed with."""

RESOLUTION_MS = 1e-3
"""Profilers count microseconds: differences far below that carry no information."""

TERMS = 6
"""Columns of `physical_terms`."""

TOWARDS_COMMON = 0.1
"""How strongly an operation's prices are drawn to those of all, in rows of its mean cost: only where its own say little."""

Columns = Mapping[str, np.ndarray]


def physical_terms(family: str, columns: Columns) -> np.ndarray:
    """float64[N, TERMS]: 1, multiply-adds, the same on padded channels, weights, activations read and written, groups."""
    batch, cin, cout = (columns[name].astype(np.float64) for name in ("batch", "cin", "cout"))
    inside = columns["height"] * columns["width"] * batch
    outside = columns["out_height"] * columns["out_width"] * batch
    area, read = window_area(family), _channels_read(family, cin)
    padded_read, padded_cout = _channels_read(family, _padded(cin)), _padded(cout)
    groups = np.zeros_like(cin)
    if family.startswith("groupconv"):  # every group is padded by itself
        padded_read, groups = _padded(read), cin / read
        padded_cout = groups * _padded(cout / groups)
    terms = (np.ones_like(cin), area * read * cout * outside, area * padded_read * padded_cout * outside, area * read * cout,
             cin * inside + cout * outside, groups)  # fmt: skip
    return np.stack(np.broadcast_arrays(*terms), axis=1)


def _channels_read(family: str, cin: np.ndarray) -> np.ndarray:
    """Input channels behind one output: all of a product, those of its group, or its own."""
    if family.startswith("groupconv"):
        return np.full_like(cin, group_size(family))
    return cin if family.startswith(("conv", "gemm", "matmul")) else np.ones_like(cin)


def _padded(channels: np.ndarray) -> np.ndarray:
    return np.ceil(channels / BLOCKS[-1]) * BLOCKS[-1]


@dataclass(frozen=True)
class Kernels:
    """N kernels: types str[N] with epilogue, shape columns int[N] each."""

    types: np.ndarray
    columns: Columns

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Kernels:
        """Those of rows of KERNEL_FIELDS."""
        return cls(frame["type"].to_numpy(dtype=str), {name: frame[name].to_numpy() for name in SHAPE_FIELDS})

    def take(self, index: np.ndarray) -> Kernels:
        """Some of them."""
        return Kernels(self.types[index], {name: column[index] for name, column in self.columns.items()})

    def terms(self) -> np.ndarray:
        """float64[N, TERMS]: `physical_terms` of each."""
        result = np.zeros((len(self.types), TERMS))
        families = np.array([family_of(one) for one in self.types])
        for family in np.unique(families):
            mask = families == family
            result[mask] = physical_terms(str(family), {name: column[mask] for name, column in self.columns.items()})
        return result


class Physics:
    """Least-squares prices of physical terms: one set for all kernels, and for each operation its own, drawn towards it.

    A grouped convolution, say, runs by another algorithm than a dense one: what it costs at sizes where none was measured
    follows from its own prices, not from how dense ones behave there.
    """

    def __init__(self, kernels: Kernels, ms: np.ndarray, rows: np.ndarray) -> None:
        terms, weight = kernels.terms(), np.sqrt(rows) / (ms + 3 * RESOLUTION_MS)
        self._common = _prices(terms, ms, weight)
        self._own = {}
        operations = _operations(kernels)
        for one in np.unique(operations):
            mine = operations == one
            self._own[one] = _prices(terms[mine], ms[mine], weight[mine], self._common)

    def predict(self, kernels: Kernels) -> np.ndarray:
        """float64[N] milliseconds."""
        prices = [self._own.get(one, self._common) for one in _operations(kernels)]
        result: np.ndarray = (kernels.terms() * np.array(prices).reshape(-1, TERMS)).sum(axis=1)
        return np.maximum(result, RESOLUTION_MS / 10)


def _operations(kernels: Kernels) -> np.ndarray:
    return np.array([operation_of(one) for one in kernels.types])


def _prices(terms: np.ndarray, ms: np.ndarray, weight: np.ndarray, towards: np.ndarray | None = None) -> np.ndarray:
    """Non-negative float64[TERMS] that explain ms float64[N] of terms float64[N, TERMS] best; where N rows do not say,
    near `towards`."""
    scale = terms.mean(axis=0) + 1e-12
    design, target = terms / scale * weight[:, None], ms * weight
    if towards is not None:
        pull = TOWARDS_COMMON / ms.mean()
        design = np.vstack([design, pull * np.eye(TERMS)])
        target = np.concatenate([target, pull * towards * scale])
    result: np.ndarray = nnls(design, target)[0] / scale
    return result
