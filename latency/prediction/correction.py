"""What a network's own end-to-end times say about each of its kernels, beyond what profiles and physics say.

The calibrated cost of the kernel at place k is multiplied by 1 + g_k(cin, cout), where every g_k is a Gaussian process on
the logarithms of its channels. A structure's relative error is then a sum over places, so end-to-end times condition all
g_k at once (an additive Gaussian process: Duvenaud et al. 2011), the corrected score is still a sum over gene pairs, and
where the process is uncertain is known: that gives a prediction its band, and adaptive coverage its next structures.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from latency.prediction.gaussian import Posterior, condition, log_evidence

SIZES = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Prior deviation of g. With SCALES (in natural logarithms of channels) and NOISES the grid from which the evidence picks."""

SCALES = (0.3, 1.0, 3.0)
NOISES = (0.005, 0.01, 0.02, 0.04)
JITTER_MS = 2e-3
"""Absolute scatter of an end-to-end time: what a run costs besides its kernels."""

PLACE_SIZE = 0.05
"""Prior deviation of a factor common to all widths of one place."""

SELECTION = 150
"""Structures among which the grid is searched; all condition the result."""

LEAST_FACTOR = 0.3


@dataclass(frozen=True)
class Places:
    """S structures of one network with K kernels: float64[S, K] each. `shares` are costs over the structure's score."""

    shares: np.ndarray
    log_cin: np.ndarray
    log_cout: np.ndarray

    def __len__(self) -> int:
        return len(self.shares)

    def of(self, chosen: np.ndarray | slice) -> Places:
        """Some of the structures."""
        return Places(self.shares[chosen], self.log_cin[chosen], self.log_cout[chosen])


@dataclass(frozen=True)
class Prior:
    """How every g varies: `size` over channels within `scale`, and a factor common to its place."""

    size: float
    scale: float

    def covariance(self, common: np.ndarray | float, alike: np.ndarray) -> np.ndarray:
        """Of what has so much in common, and so much where channels count as far as they are alike."""
        result: np.ndarray = PLACE_SIZE**2 * common + self.size**2 * alike
        return result

    def of_structures(self, a: Places, b: Places) -> np.ndarray:
        """float64[A, B]: covariance between the relative errors of structures."""
        return self.covariance(a.shares @ b.shares.T, _alike(self.scale, a, b))

    def variance(self, places: Places) -> np.ndarray:
        """float64[P] of the relative errors of structures."""
        squares = (places.shares**2).sum(axis=1)
        return self.covariance(squares, squares)


@dataclass(frozen=True)
class Correction:
    """The processes g_k, conditioned on the structures `seen`."""

    prior: Prior
    noise: float
    seen: Places
    errors: np.ndarray
    posterior: Posterior

    @classmethod
    def fit(cls, seen: Places, errors: np.ndarray, latency_ms: np.ndarray) -> Correction:
        """Condition on relative errors float64[S] of the scores (true over calibrated, minus 1).

        Size, scale and noise are those with the best evidence.
        """
        some = slice(None, None, max(1, len(seen) // SELECTION))
        few, few_errors, few_ms = seen.of(some), errors[some], latency_ms[some]
        common, alike = few.shares @ few.shares.T, {scale: _alike(scale, few, few) for scale in SCALES}

        def evidence(hypothesis: tuple[float, float, float]) -> float:
            scale, size, noise = hypothesis
            covariance = Prior(size, scale).covariance(common, alike[scale])
            return log_evidence(covariance, _noise(noise, few_ms), few_errors)

        scale, size, noise = max(itertools.product(SCALES, SIZES, NOISES), key=evidence)
        prior = Prior(size, scale)
        return cls(prior, noise, seen, errors, condition(prior.of_structures(seen, seen), _noise(noise, latency_ms), errors))

    def agreeing(self, limit: float) -> np.ndarray:
        """bool[S]: structures within `limit` robust standard deviations of what all others say of them."""
        away = (self.errors - self.posterior.left_out) / self.posterior.left_out_deviation
        scale = max(1e-9, float(np.median(np.abs(away))) * 1.4826)  # of a normal distribution
        result: np.ndarray = np.abs(away) <= limit * scale
        return result

    def factor(self, place: int, cin: np.ndarray, cout: np.ndarray) -> np.ndarray:
        """float64[N]: 1 + g of the kernel at `place`, for N channel pairs."""
        distance = _distance(np.log(cin), np.log(cout), self.seen.log_cin[:, place], self.seen.log_cout[:, place])
        g = self.prior.covariance(1.0, _likeness(self.prior.scale, distance)) @ (
            self.seen.shares[:, place] * self.posterior.weights
        )
        return np.maximum(1 + g, LEAST_FACTOR)

    def deviation(self, places: Places, latency_ms: np.ndarray) -> np.ndarray:
        """float64[P]: relative standard deviation of a measurement of P structures, its noise included."""
        covariance = self.prior.of_structures(places, self.seen)
        return np.sqrt(self.posterior.variance(self.prior.variance(places), covariance) + _noise(self.noise, latency_ms))

    def held_out(self, seen: Places, latency_ms: np.ndarray, folds: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """float64[S]: logarithms of measured over predicted, in standard deviations, of structures that were not seen.

        Args:
            seen, latency_ms: S structures, and what they took, float64[S].
            folds: bool[S], some of them, that all others predict; and the relative errors of all, float64[S], by a calibration
                that has not seen these.
        """
        covariance, variance, noise = (
            self.prior.of_structures(seen, seen),
            self.prior.variance(seen),
            _noise(self.noise, latency_ms),
        )
        result = np.zeros(len(seen))
        for held, errors in folds:
            posterior = condition(covariance[np.ix_(~held, ~held)], noise[~held], errors[~held])
            across = covariance[np.ix_(held, ~held)]
            remaining = (1 + errors[held]) / (1 + across @ posterior.weights)
            result[held] = np.log(remaining) / np.sqrt(posterior.variance(variance[held], across) + noise[held])
        return result


def _alike(scale: float, a: Places, b: Places) -> np.ndarray:
    """float64[A, B]: what structures share of every place, as far as it has like channels in both."""
    total = np.zeros((len(a), len(b)))
    for place in range(a.shares.shape[1]):
        distance = _distance(a.log_cin[:, place], a.log_cout[:, place], b.log_cin[:, place], b.log_cout[:, place])
        total += np.outer(a.shares[:, place], b.shares[:, place]) * _likeness(scale, distance)
    return total


def _likeness(scale: float, distance: np.ndarray) -> np.ndarray:
    """Of channel pairs, given squared distances of their logarithms."""
    result: np.ndarray = np.exp(distance * (-0.5 / scale**2))
    return result


def _distance(cin: np.ndarray, cout: np.ndarray, seen_cin: np.ndarray, seen_cout: np.ndarray) -> np.ndarray:
    return np.subtract.outer(cin, seen_cin) ** 2 + np.subtract.outer(cout, seen_cout) ** 2


def _noise(noise: float, latency_ms: np.ndarray) -> np.ndarray:
    return noise**2 + (JITTER_MS / latency_ms) ** 2
