"""From kernel times to end-to-end time.

Profiled kernel times are shares; what counts is the unprofiled time of whole networks. Each kernel type gets a
non-negative factor on its profiled time, each family non-negative prices for its physical terms (which carry the fit
where networks are so short that profiles say little), the network a constant, and the sum a monotone link that takes up
what no sum can express: a small network whose weights stay in the cache runs faster than the sum of its parts. The score
before the link is a plain sum over kernels, so budgets in ms translate exactly into budgets on a sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from latency.graph.kernels import family_of
from latency.graph.work import TERMS

KNOTS = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
"""Quantiles of the scores between which the link is linear: closer together among the small networks."""

ROUNDS = 8
"""Times the sum and the link are fitted in turn: what the link takes up need not bend the sum."""

SMOOTHNESS = 0.3
"""Weight of a bend of the link, in structures: many structures may bend it more than few."""

LEAST_SLOPE = 0.2


@dataclass(frozen=True)
class KernelRows:
    """The kernels of S structures, N rows in all.

    Attributes:
        types: str[N]. ms: float64[N], of the regression, not fitted to these very rows.
        terms: float64[N, TERMS], see `work.physical_terms`. structure: int[N] in 0 … S-1.
    """

    types: np.ndarray
    ms: np.ndarray
    terms: np.ndarray
    structure: np.ndarray

    def of(self, chosen: np.ndarray) -> KernelRows:
        """Those of the structures in the mask `chosen` bool[S], numbered anew."""
        rows = chosen[self.structure]
        position = np.cumsum(chosen) - 1
        return KernelRows(self.types[rows], self.ms[rows], self.terms[rows], position[self.structure[rows]])

    def sums(self) -> Sums:
        """What they add up to in each structure."""
        types, by_type = np.unique(self.types, return_inverse=True)
        families, family = np.unique([family_of(one) for one in types], return_inverse=True)
        by_family = family[by_type]
        ms = _summed(self.structure, by_type, self.ms)
        terms = np.stack([_summed(self.structure, by_family, column) for column in self.terms.T], axis=2)
        return Sums(types.tolist(), families.tolist(), ms, terms)


@dataclass(frozen=True)
class Sums:
    """Of S structures, what the kernels of each add up to.

    Attributes:
        types: of kernels, T of them. families: F of them.
        ms: float64[S, T], by type. terms: float64[S, F, TERMS], by family.
    """

    types: list[str]
    families: list[str]
    ms: np.ndarray
    terms: np.ndarray

    def of(self, chosen: np.ndarray) -> Sums:
        """Those of the structures in the mask `chosen` bool[S]."""
        return Sums(self.types, self.families, self.ms[chosen], self.terms[chosen])


@dataclass(frozen=True)
class MonotoneLink:
    """An increasing map on a log-log scale, linear between knots and parallel to the identity beyond them."""

    log_scores: np.ndarray
    log_ms: np.ndarray

    @classmethod
    def fit(cls, scores: np.ndarray, ms: np.ndarray) -> MonotoneLink:
        """Smoothed least squares of log(ms / score) on hat functions around quantiles of the scores."""
        x = np.log(scores)
        knots = np.unique(np.quantile(x, KNOTS))
        hats = np.stack([np.interp(x, knots, row) for row in np.eye(len(knots))], axis=1)
        bends = np.diff(np.eye(len(knots)), 2, axis=0) * np.sqrt(SMOOTHNESS)
        target = np.concatenate([np.log(ms) - x, np.zeros(len(bends))])
        shift = np.linalg.lstsq(np.vstack([hats, bends]), target, rcond=None)[0]
        rises = np.maximum(np.diff(knots + shift), LEAST_SLOPE * np.diff(knots))
        return cls(knots, np.concatenate([[0.0], np.cumsum(rises)]) + knots[0] + shift[0])

    def to_ms(self, scores: Any) -> Any:
        """Milliseconds of scores, elementwise."""
        return _interpolated(scores, self.log_scores, self.log_ms)

    def to_score(self, ms: Any) -> Any:
        """The inverse of `to_ms`."""
        return _interpolated(ms, self.log_ms, self.log_scores)


def _interpolated(values: Any, x: np.ndarray, y: np.ndarray) -> Any:
    logs = np.log(np.maximum(values, 1e-12))
    inside = np.clip(logs, x[0], x[-1])
    return np.exp(np.interp(inside, x, y) + logs - inside)


@dataclass(frozen=True)
class Calibration:
    """latency = link(score); score = constant + Σ over kernels of (factor[type] × ms + prices[family] · terms)."""

    constant: float
    factors: Mapping[str, float]
    prices: Mapping[str, np.ndarray]
    typical: float  # cost of a kernel over its profiled ms, all in all
    link: MonotoneLink

    @classmethod
    def none(cls) -> Calibration:
        """Kernels cost their ms: those of a table are scaled to end-to-end times, so for networks never seen this is best."""
        return cls(0.0, {}, {}, 1.0, MonotoneLink(np.zeros(2), np.zeros(2)))

    @classmethod
    def fit(cls, sums: Sums, latency_ms: np.ndarray) -> Calibration:
        """Least relative error over S structures that took `latency_ms` float64[S] end to end."""
        design = np.hstack([np.ones((len(latency_ms), 1)), sums.ms, sums.terms.reshape(len(latency_ms), -1)])
        scale = design.mean(axis=0) + 1e-300
        scores = latency_ms
        for _ in range(ROUNDS):
            weights = nnls(design / scale / latency_ms[:, None], scores / latency_ms)[0] / scale
            link = MonotoneLink.fit(np.maximum(design @ weights, 1e-6), latency_ms)
            scores = link.to_score(latency_ms)
        constant, factors, prices = np.split(weights, [1, 1 + len(sums.types)])
        typical = float((design[:, 1:] @ weights[1:]).sum() / sums.ms.sum())
        by_family = dict(zip(sums.families, prices.reshape(-1, TERMS), strict=True))
        return cls(float(constant[0]), dict(zip(sums.types, factors.tolist(), strict=True)), by_family, typical, link)

    def scores(self, sums: Sums) -> np.ndarray:
        """float64[S] of structures whose kernels are of the types that it was fitted to."""
        factors = np.array([self.factors[one] for one in sums.types])
        prices = np.stack([self.prices[one] for one in sums.families])
        result: np.ndarray = self.constant + sums.ms @ factors + np.einsum("sft,ft->s", sums.terms, prices)
        return result

    def errors(self, sums: Sums, latency_ms: np.ndarray) -> np.ndarray:
        """float64[S]: relative errors of their scores (true over calibrated, minus 1)."""
        result: np.ndarray = self.link.to_score(latency_ms) / self.scores(sums) - 1
        return result

    def cost(self, kernel_type: str, ms: np.ndarray, terms: np.ndarray) -> np.ndarray:
        """float64[N]: what N kernels of one type add to the score. A type without rows here costs what its family does."""
        relatives = [value for one, value in self.factors.items() if family_of(one) == family_of(kernel_type)]
        if not relatives:
            return self.typical * ms
        factor = self.factors.get(kernel_type, float(np.mean(relatives)))
        result: np.ndarray = factor * ms + terms @ self.prices[family_of(kernel_type)]
        return result

    def costs(self, rows: KernelRows) -> np.ndarray:
        """float64[N]: `cost` of every row."""
        result = np.zeros(len(rows.ms))
        for one in np.unique(rows.types):
            mask = rows.types == one
            result[mask] = self.cost(str(one), rows.ms[mask], rows.terms[mask])
        return result


def _summed(structure: np.ndarray, group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """float64[S, G]: sums of values float64[N] over the rows of each structure in each group."""
    shape = (structure.max() + 1, group.max() + 1)
    return np.bincount(structure * shape[1] + group, values, shape[0] * shape[1]).reshape(shape)
