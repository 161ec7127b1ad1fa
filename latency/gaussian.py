"""Exact Gaussian processes on a few hundred points: what both regressions of this package lean on.

Formulas: Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), sections 2.2 and 5.4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Posterior:
    """A zero-mean process after N targets have been seen; its mean at x is k(x, X) @ `weights`.

    Attributes:
        weights: float64[N].
        precision: float64[N, N], inverse of the targets' covariance, noise included.
        left_out: float64[N], the mean at each target as if that target had not been seen.
        log_evidence: log marginal likelihood, up to a constant.
    """

    weights: np.ndarray
    precision: np.ndarray
    left_out: np.ndarray
    log_evidence: float

    @property
    def left_out_deviation(self) -> np.ndarray:
        """float64[N]: standard deviation of each target, noise included, as if it had not been seen."""
        result: np.ndarray = 1 / np.sqrt(np.diag(self.precision))
        return result

    def variance(self, prior: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """float64[M] at M points, given their prior variance [M] and their covariance with the targets [M, N]."""
        explained = np.einsum("mn,nk,mk->m", covariance, self.precision, covariance, optimize=True)
        return np.maximum(prior - explained, 0.0)


def condition(covariance: np.ndarray, noise: np.ndarray, targets: np.ndarray) -> Posterior:
    """See `targets` [N] whose values have prior `covariance` [N, N] and whose errors have variance `noise` [N]."""
    lower = np.linalg.cholesky(covariance + np.diag(noise + 1e-10))
    inverse = np.linalg.inv(lower)
    precision = inverse.T @ inverse
    weights = precision @ targets
    left_out = targets - weights / np.diag(precision)
    log_evidence = -0.5 * float(targets @ weights) - float(np.log(np.diag(lower)).sum())
    return Posterior(weights, precision, left_out, log_evidence)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64[N, M] between points [N, D] and [M, D]."""
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T, 0.0)
