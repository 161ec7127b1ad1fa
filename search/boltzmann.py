"""Independent random structures x with probability ∝ exp(−cost(x)), exactly: no chain that has to forget its start.

The cost is a sum over gene pairs, so genes can be eliminated one after another (here by summing exp(−cost), where the
cheapest structure takes minima) and then drawn in the opposite order, each given those drawn before. Draws are two look-ups a
gene by Walker's alias method (A. J. Walker 1977, ACM Transactions on Mathematical Software 3).
"""

from __future__ import annotations

import numpy as np

from latency.graph.pairwise import PairwiseCost


class BoltzmannSampler:
    """Draws structures with probability exp(−cost) / Z.

    Raises:
        IntractableCost: genes are connected too densely.
    """

    def __init__(self, cost: PairwiseCost) -> None:
        elimination = cost.eliminate(softmin)
        self.log_z = -elimination.total
        self._tables = [(gene, scope, AliasTable(joint)) for gene, scope, joint in elimination.steps]

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """int64[count, L]: choice indices."""
        indices = np.empty((len(self._tables), count), dtype=np.int64)
        for gene, scope, table in self._tables:
            indices[gene] = table.draw([indices[g] for g in scope], count, rng)
        return indices.T


def softmin(joint: np.ndarray) -> np.ndarray:
    """−log Σ exp(−joint) over the last axis."""
    least = joint.min(axis=-1, keepdims=True)
    total: np.ndarray = least[..., 0] - np.log(np.exp(least - joint).sum(axis=-1))
    return total


class AliasTable:
    """For each row of `costs` [rows…, K], draws of 0 … K−1 with probability ∝ exp(−cost)."""

    def __init__(self, costs: np.ndarray) -> None:
        *self._shape, self._choices = costs.shape
        weights = np.exp(costs.min(axis=-1, keepdims=True) - costs).reshape(-1, self._choices)
        left = weights * (self._choices / weights.sum(axis=1, keepdims=True))
        self._keep = np.ones_like(left)
        self._other = np.tile(np.arange(self._choices), (len(left), 1))
        rows = np.arange(len(left))
        for _ in range(self._choices - 1):  # fill the emptiest column from the fullest, for all rows at once
            small, large = left.argmin(axis=1), np.where(np.isinf(left), -np.inf, left).argmax(axis=1)
            share = left[rows, small]
            self._keep[rows, small] = share
            self._other[rows, small] = large
            left[rows, large] -= 1 - share
            left[rows, small] = np.inf
        self._keep, self._other = self._keep.ravel(), self._other.ravel()

    def draw(self, given: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
        """int64[count]: one draw from each row that the indices `given` (one array for each axis of rows) name."""
        scaled = rng.random(count) * self._choices
        column = scaled.astype(np.int64)
        row = np.ravel_multi_index(given, tuple(self._shape)) if given else 0
        at = row * self._choices + column
        drawn: np.ndarray = np.where(scaled - column < self._keep[at], column, self._other[at])
        return drawn
