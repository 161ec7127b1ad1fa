"""What the shape of a kernel says of its cost: multiply-adds, padding, bytes; and their prices by least squares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from latency.kernels import KERNEL_FIELDS, family_of, group_size, window_area

SHAPE_FIELDS = tuple(name for name in KERNEL_FIELDS if name != "type")
BLOCKS = (4, 8, 16)
"""Channel blocks of vector units; the largest is what padded sizes are computed with."""

RESOLUTION_MS = 1e-3
"""Profilers count microseconds: differences far below that carry no information."""

TERMS = 6
"""Columns of `physical_terms`."""

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
    """Least-squares prices of physical terms."""

    def __init__(self, kernels: Kernels, ms: np.ndarray, rows: np.ndarray) -> None:
        terms, weight = kernels.terms(), np.sqrt(rows) / (ms + 3 * RESOLUTION_MS)
        scale = terms.mean(axis=0) + 1e-12
        self._prices = nnls(terms / scale * weight[:, None], ms * weight)[0] / scale

    def predict(self, kernels: Kernels) -> np.ndarray:
        """float64[N] milliseconds."""
        return np.maximum(kernels.terms() @ self._prices, RESOLUTION_MS / 10)
