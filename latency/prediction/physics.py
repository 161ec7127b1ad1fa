"""Prices of multiply-adds, padding and bytes, by least squares."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from latency.graph.kernels import operation_of
from latency.graph.work import GROUPS, TERMS, Kernels

RESOLUTION_MS = 1e-3
"""Profilers count microseconds: differences far below that carry no information."""

PRICED_AS = {"gemm": "matmul"}
"""Operations of one price."""

TOWARDS_COMMON = 0.1
"""How strongly an operation's prices are drawn to those of all, in rows of its mean cost: only where its own say little."""

UNEXPLAINED = 0.15
"""A group has a price of its own only where this share of the costs (by least squares) has no other explanation."""


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
