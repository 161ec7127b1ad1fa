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
"""Channel blocks of vector units: 4 on ARM, 8 with AVX2, 16 with AVX-512. Which of them a device pads to, prices tell."""

RESOLUTION_MS = 1e-3
"""Profilers count microseconds: differences far below that carry no information."""

MOVES = frozenset({"reshape", "transpose"})
"""Operations after which axis 1 may hold anything: nothing is padded to blocks of it."""

PRICED_AS = {"gemm": "matmul"}
"""Operations of one price."""

GROUPS = 4
"""The column of groups: only grouped convolutions have any."""

TERMS = 5 + len(BLOCKS)
"""Columns of `physical_terms`."""

TOWARDS_COMMON = 0.1
"""How strongly an operation's prices are drawn to those of all, in rows of its mean cost: only where its own say little."""

UNEXPLAINED = 0.15
"""A group has a price of its own only where this share of the costs (by least squares) has no other explanation."""

Columns = Mapping[str, np.ndarray]


def physical_terms(family: str, columns: Columns) -> np.ndarray:
    """float64[N, TERMS]: 1, multiply-adds, weights, activations read and written, groups; and multiply-adds on channels
    padded to each of BLOCKS."""
    batch, cin, cout = (columns[name].astype(np.float64) for name in ("batch", "cin", "cout"))
    inside = columns["height"] * columns["width"] * batch
    outside = columns["out_height"] * columns["out_width"] * batch
    group = group_size(family) if family.startswith("groupconv") else 0
    area, (read, made) = window_area(family), channels_of_a_group(group, cin, cout)
    groups = cout / made
    if not family.startswith(("conv", "groupconv", "gemm", "matmul")):
        read = np.ones_like(cin)  # each output has one channel behind it, its own
    blocks = BLOCKS if operation_of(family) not in MOVES else (1,) * len(BLOCKS)
    padded = [area * _padded(read, block) * _padded(made, block) * groups * outside for block in blocks]
    terms = (np.ones_like(cin), area * read * cout * outside, area * read * cout, cin * inside + cout * outside,
             np.where(groups > 1, groups, 0), *padded)  # fmt: skip
    return np.stack(np.broadcast_arrays(*terms), axis=1)


def channels_of_a_group(group: int | np.ndarray, cin: np.ndarray, cout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(read, made): channels of one group of a grouped convolution, which is what is padded; all channels of anything else.

    Args:
        group: input channels of each group; 0 where the convolution is not grouped.
    """
    grouped = np.asarray(group) > 0
    return np.where(grouped, group, cin), np.where(grouped, cout * group / cin, cout)


def _padded(channels: np.ndarray, block: int) -> np.ndarray:
    return np.where(channels > 1, np.ceil(channels / block) * block, channels)


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
    follows from its own prices, not from how dense ones behave there. What a group costs is priced only where it explains
    much: within one network groups go with multiply-adds (ResNeXt's have equally many of them in all its stages), and a price
    learnt from small differences there misleads elsewhere (RegNet's groups at 7×7 came out twice as dear).
    """

    def __init__(self, kernels: Kernels, ms: np.ndarray, rows: np.ndarray) -> None:
        terms, weight = kernels.terms(), np.sqrt(rows) / (ms + 3 * RESOLUTION_MS)
        self._common, _ = _prices(_without_groups(terms), ms, weight)
        self._own = {}
        operations = _operations(kernels)
        for one in np.unique(operations):
            mine = operations == one
            self._own[one] = _own_prices(terms[mine], ms[mine], weight[mine], self._common)

    def predict(self, kernels: Kernels) -> np.ndarray:
        """float64[N] milliseconds."""
        prices = [self._own.get(one, self._common) for one in _operations(kernels)]
        result: np.ndarray = (kernels.terms() * np.array(prices).reshape(-1, TERMS)).sum(axis=1)
        return np.maximum(result, RESOLUTION_MS / 10)


def _operations(kernels: Kernels) -> np.ndarray:
    """A Gemm is a MatMul: of few rows that read all weights in the one, of many in the other."""
    return np.array([PRICED_AS.get(one, one) for one in map(operation_of, kernels.types)])


def _without_groups(terms: np.ndarray) -> np.ndarray:
    return np.where(np.arange(TERMS) == GROUPS, 0, terms)


def _own_prices(terms: np.ndarray, ms: np.ndarray, weight: np.ndarray, common: np.ndarray) -> np.ndarray:
    plain, error = _prices(_without_groups(terms), ms, weight, common)
    explained = error < UNEXPLAINED * np.linalg.norm(ms * weight)
    return plain if explained else _prices(terms, ms, weight, common)[0]


def _prices(
    terms: np.ndarray, ms: np.ndarray, weight: np.ndarray, towards: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Non-negative float64[TERMS] that explain ms float64[N] of terms float64[N, TERMS] best, and the error that remains;
    where N rows do not say, near `towards`."""
    scale = terms.mean(axis=0) + 1e-12
    design, target = terms / scale * weight[:, None], ms * weight
    if towards is not None:
        pull = TOWARDS_COMMON / max(ms.mean(), RESOLUTION_MS / 1000)
        design = np.vstack([design, pull * np.eye(TERMS)])
        target = np.concatenate([target, pull * towards * scale])
    prices, error = nnls(design, target)
    return prices / scale, float(error)
