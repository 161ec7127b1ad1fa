"""Gaussian processes, against conditioning worked out the slow way."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from latency.prediction.gaussian import condition, log_evidence, squared_distances


@pytest.fixture
def problem(rng):
    points = rng.normal(size=(30, 3))
    covariance = np.exp(-0.5 * squared_distances(points, points))
    noise = rng.uniform(0.01, 0.1, 30)
    targets = rng.multivariate_normal(np.zeros(30), covariance + np.diag(noise))
    return points, covariance, noise, targets


def test_leaving_out_is_what_a_fit_without_the_target_predicts(problem) -> None:
    _, covariance, noise, targets = problem
    posterior = condition(covariance, noise, targets)
    for held in range(0, 30, 7):
        rest = np.arange(30) != held
        among = covariance[np.ix_(rest, rest)] + np.diag(noise[rest])
        across = covariance[held, rest]
        assert posterior.left_out[held] == pytest.approx(across @ np.linalg.solve(among, targets[rest]))
        variance = covariance[held, held] + noise[held] - across @ np.linalg.solve(among, across)
        assert posterior.left_out_deviation[held] ** 2 == pytest.approx(variance)


def test_evidence_is_the_likelihood_of_the_targets(problem) -> None:
    _, covariance, noise, targets = problem
    ours = [log_evidence(covariance, scale * noise, targets) for scale in (1.0, 3.0)]
    theirs = [multivariate_normal(cov=covariance + np.diag(scale * noise)).logpdf(targets) for scale in (1.0, 3.0)]
    assert ours[1] - ours[0] == pytest.approx(theirs[1] - theirs[0])


def test_variance_falls_to_the_noise_of_the_data_and_rises_to_the_prior(problem) -> None:
    points, covariance, noise, targets = problem
    posterior = condition(covariance, noise, targets)
    near, far = points + 1e-9, points + 100
    for where, expected in (
        (near, covariance - covariance @ np.linalg.inv(covariance + np.diag(noise)) @ covariance),
        (far, None),
    ):
        across = np.exp(-0.5 * squared_distances(where, points))
        variance = posterior.variance(np.ones(30), across)
        np.testing.assert_allclose(variance, 1.0 if expected is None else np.diag(expected), atol=1e-6)


def test_distances_are_those_of_a_loop(rng) -> None:
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    np.testing.assert_allclose(squared_distances(a, b), [[((x - y) ** 2).sum() for y in b] for x in a])
