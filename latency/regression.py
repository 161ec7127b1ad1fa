"""What one kernel costs: physics learned by least squares, and a Gaussian process for where the rows say otherwise.

The physical base (a constant, multiply-adds, the same on padded channels, bytes) extrapolates sanely; the process knows
the steps and cliffs (alignment, layout conversions) near what was measured. Kernels of one family (the same operation,
whatever its epilogue) learn from each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from latency.gaussian import Posterior, condition, squared_distances
from latency.kernels import KERNEL_FIELDS, Kernel, family_of

SHAPE_FIELDS = tuple(name for name in KERNEL_FIELDS if name != "type")
BLOCKS = (4, 8, 16)
"""Channel blocks of vector units; the largest is what padded sizes are computed with."""

REMAINDER_DISTANCES = (1.0, 0.5, 0.5)
"""How unlike two channel counts are, of which only one is a multiple of each block; one is a doubling of the size."""

SCALES = (1.0, 2.0, 4.0)
"""Doublings of a size over which kernels resemble each other: the one with the best evidence is taken."""

NOISE = 0.04
"""Relative scatter of one kernel's profiled time."""

RESOLUTION_MS = 1e-3
"""Profilers count microseconds: differences far below that carry no information."""

MOST_ROWS = 500
"""Kernels of one family that the process is conditioned on; more are drawn from at random."""

Columns = Mapping[str, np.ndarray]


def physical_terms(family: str, columns: Columns) -> np.ndarray:
    """float64[N, 5]: 1, multiply-adds, the same on padded channels, weights, activations read and written."""
    batch, cin, cout = (columns[name].astype(np.float64) for name in ("batch", "cin", "cout"))
    inside = columns["height"] * columns["width"] * batch
    outside = columns["out_height"] * columns["out_width"] * batch
    area, read, padded = _area(family), _channels_read(family, cin), _channels_read(family, _padded(cin))
    terms = (np.ones_like(cin), area * read * cout * outside, area * padded * _padded(cout) * outside, area * read * cout,
             cin * inside + cout * outside)  # fmt: skip
    return np.stack(np.broadcast_arrays(*terms), axis=1)


def _area(family: str) -> int:
    """Positions of the sliding window: 9 for "conv3x3s2", 1 without a window."""
    window = re.search(r"(\d+)x(\d+)s", family)
    return int(window.group(1)) * int(window.group(2)) if window else 1


def _channels_read(family: str, cin: np.ndarray) -> np.ndarray:
    """Input channels behind one output: all of a product, those of its group, or its own."""
    group = re.search(r"g(\d+)$", family)
    if group:
        return np.full_like(cin, int(group.group(1)))
    return cin if family.startswith(("conv", "gemm", "matmul")) else np.ones_like(cin)


def _padded(channels: np.ndarray) -> np.ndarray:
    return np.ceil(channels / BLOCKS[-1]) * BLOCKS[-1]


class FamilyRegressor:
    """Milliseconds of all kernels of one family.

    Args:
        types: str[N], with epilogue. columns: of N different kernels. ms, rows: their mean, and how many rows it is of.
    """

    def __init__(self, family: str, types: np.ndarray, columns: Columns, ms: np.ndarray, rows: np.ndarray) -> None:
        self.family = family
        self.types = tuple(np.unique(types))
        terms = physical_terms(family, columns)
        weight = np.sqrt(rows) / (ms + 3 * RESOLUTION_MS)  # relative errors count, but not below the profiler's resolution
        scale = terms.mean(axis=0) + 1e-12
        self._coefficients = nnls(terms / scale * weight[:, None], ms * weight)[0] / scale
        base = self._base(columns)
        target = np.log((ms + RESOLUTION_MS) / (base + RESOLUTION_MS))
        chosen = np.random.default_rng(0).permutation(len(ms))[:MOST_ROWS]
        self._points = self._embedded(types, columns)[chosen]
        self._mean = float(np.average(target[chosen], weights=weight[chosen] * ms[chosen]))
        self._variance = max(float(np.var(target[chosen])), NOISE**2)
        noise = (NOISE**2 + (RESOLUTION_MS / (ms + RESOLUTION_MS))[chosen] ** 2) / rows[chosen]
        self._scale, self._posterior = self._conditioned(noise, target[chosen] - self._mean)
        ratio = self._ratio(types, columns)
        ratio[chosen] = self._mean + self._posterior.left_out
        self.unseen_ms = self._corrected(base, ratio)

    def predict(self, kernel_type: str, columns: Columns) -> np.ndarray:
        """float64[N] for shape columns of N kernels."""
        types = np.full(len(columns["cin"]), kernel_type)
        return self._corrected(self._base(columns), self._ratio(types, columns))

    def deviation(self, kernel_type: str, columns: Columns) -> np.ndarray:
        """float64[N]: standard deviation of the logarithm of `predict`."""
        covariance = self._covariance(self._embedded(np.full(len(columns["cin"]), kernel_type), columns), self._scale)
        return np.sqrt(self._posterior.variance(np.full(len(covariance), self._variance), covariance) + NOISE**2)

    def _conditioned(self, noise: np.ndarray, target: np.ndarray) -> tuple[float, Posterior]:
        posteriors = {scale: condition(self._covariance(self._points, scale), noise, target) for scale in SCALES}
        return max(posteriors.items(), key=lambda item: item[1].log_evidence)

    def _ratio(self, types: np.ndarray, columns: Columns) -> np.ndarray:
        """float64[N]: log of real over base."""
        result: np.ndarray = (
            self._mean + self._covariance(self._embedded(types, columns), self._scale) @ self._posterior.weights
        )
        return result

    def _covariance(self, points: np.ndarray, scale: float) -> np.ndarray:
        near = squared_distances(points[:, :4] / scale, self._points[:, :4] / scale)
        return self._variance * np.exp(-0.5 * (near + squared_distances(points[:, 4:], self._points[:, 4:])))

    def _embedded(self, types: np.ndarray, columns: Columns) -> np.ndarray:
        """float64[N, D]: sizes in doublings, then remainders and epilogues, which are alike or not."""
        positions = columns["out_height"] * columns["out_width"]
        sizes = [np.log2(size) for size in (columns["cin"], columns["cout"], positions, columns["batch"])]
        remainders = [
            (columns[name] % block == 0) * distance
            for name in ("cin", "cout")
            for block, distance in zip(BLOCKS, REMAINDER_DISTANCES, strict=True)
        ]
        epilogues = [types == one for one in self.types]
        return np.stack([*sizes, *remainders, *epilogues], axis=1).astype(np.float64)

    def _base(self, columns: Columns) -> np.ndarray:
        return np.maximum(physical_terms(self.family, columns) @ self._coefficients, RESOLUTION_MS / 10)

    def _corrected(self, base: np.ndarray, log_ratio: np.ndarray) -> np.ndarray:
        return np.maximum((base + RESOLUTION_MS) * np.exp(log_ratio) - RESOLUTION_MS, base / 5)


class Guess:
    """Milliseconds of operations never measured, from all that do the same kind of work: products, or anything else."""

    def __init__(self, kernels: pd.DataFrame) -> None:
        self._coefficients = {}
        self._deviation = {}
        products = kernels["type"].map(_is_product)
        for kind, rows in ((True, kernels[products]), (False, kernels[~products])):
            terms, ms = terms_of(rows), rows["ms"].to_numpy() + RESOLUTION_MS
            scale = terms.mean(axis=0) + 1e-12
            self._coefficients[kind] = nnls(terms / scale / ms[:, None], np.ones(len(ms)))[0] / scale
            self._deviation[kind] = float(np.sqrt(np.mean(np.log(ms / (terms @ self._coefficients[kind])) ** 2)))

    def predict(self, kernel_type: str, columns: Columns) -> np.ndarray:
        """float64[N] for shape columns of N kernels."""
        result: np.ndarray = physical_terms(family_of(kernel_type), columns) @ self._coefficients[_is_product(kernel_type)]
        return result

    def deviation(self, kernel_type: str) -> float:
        """Standard deviation of the logarithm of `predict`."""
        return self._deviation[_is_product(kernel_type)]


def _is_product(kernel_type: str) -> bool:
    return kernel_type.startswith(("conv", "groupconv", "depthwise", "gemm", "matmul"))


class KernelRegressor:
    """All kernels of one table: exact ones that were measured lean on their own rows, the rest is regressed.

    Args:
        kernels: rows of KERNEL_FIELDS and ms.

    Attributes:
        unseen_ms: float64[N], for each row its ms as if that row had not been seen.
    """

    PRIOR_ROWS = 2
    """The regression counts as much as this many measured rows of the very kernel."""

    def __init__(self, kernels: pd.DataFrame) -> None:
        groups = kernels.groupby(list(KERNEL_FIELDS), sort=False)["ms"]
        self._distinct = pd.DataFrame({"ms": groups.mean(), "rows": groups.count()}).reset_index()
        ms, rows = self._distinct["ms"].to_numpy(), self._distinct["rows"].to_numpy()
        keys = zip(*(self._distinct[name].tolist() for name in KERNEL_FIELDS), strict=True)
        self._measured = dict(zip(keys, zip(ms.tolist(), rows.tolist(), strict=True), strict=True))
        self._families = {}
        unseen = np.zeros(len(self._distinct))
        for family, index in self._distinct.groupby(self._distinct["type"].map(family_of)).indices.items():
            part = self._distinct.iloc[index]
            regressor = FamilyRegressor(str(family), part["type"].to_numpy(dtype=str), columns_of(part), ms[index], rows[index])
            self._families[str(family)] = regressor
            unseen[index] = regressor.unseen_ms
        own = groups.ngroup().to_numpy()
        others = rows[own] - 1
        sum_of_others = ms[own] * rows[own] - kernels["ms"].to_numpy()
        self.unseen_ms = (sum_of_others + self.PRIOR_ROWS * unseen[own]) / (others + self.PRIOR_ROWS)

    def covers(self, kernel_type: str) -> bool:
        """Whether its operation has been measured, with whatever epilogue."""
        return family_of(kernel_type) in self._families

    def predict(self, kernel_type: str, columns: Columns) -> np.ndarray:
        """float64[N] milliseconds of N kernels of one type; guessed where the type is not covered."""
        family = self._families.get(family_of(kernel_type))
        if family is None:
            return self._guess.predict(kernel_type, columns)
        known = [self._measured.get(key, (0.0, 0)) for key in _keys(kernel_type, columns)]
        ms, rows = np.array(known).T
        return (ms * rows + self.PRIOR_ROWS * family.predict(kernel_type, columns)) / (rows + self.PRIOR_ROWS)

    def deviation(self, kernel_type: str, columns: Columns) -> np.ndarray:
        """float64[N]: standard deviations of the logarithms of `predict`."""
        family = self._families.get(family_of(kernel_type))
        if family is None:
            return np.full(len(columns["cin"]), self._guess.deviation(kernel_type))
        return family.deviation(kernel_type, columns)

    def source(self, kernel: Kernel) -> str:
        """Where its milliseconds come from: "measured", "regressed" or "guessed"."""
        if astuple(kernel) in self._measured:
            return "measured"
        return "regressed" if self.covers(kernel.type) else "guessed"

    @property
    def types(self) -> list[str]:
        """Operations that have been measured."""
        return sorted(self._families)

    @cached_property
    def _guess(self) -> Guess:
        return Guess(self._distinct)


def columns_of(kernels: pd.DataFrame) -> Columns:
    """The shape columns of rows of kernels."""
    return {name: kernels[name].to_numpy() for name in SHAPE_FIELDS}


def terms_of(kernels: pd.DataFrame) -> np.ndarray:
    """float64[N, 5]: `physical_terms` of rows of kernels of any types."""
    result = np.zeros((len(kernels), 5))
    for family, index in kernels.groupby(kernels["type"].map(family_of)).indices.items():
        result[index] = physical_terms(str(family), columns_of(kernels.iloc[index]))
    return result


def _keys(kernel_type: str, columns: Columns) -> Iterator[tuple[Any, ...]]:
    return ((kernel_type, *shape) for shape in zip(*(columns[name].tolist() for name in SHAPE_FIELDS), strict=True))
