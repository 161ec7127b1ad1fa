"""All structures within given budgets: the cheapest exactly, random ones by construction.

Every cost is a sum over gene pairs (latency after inverting its monotone link). So structures can be drawn independently
with probability ∝ exp(−λ·cost), for any λ, and kept with probability exp(λ·(cost − bound)) when they are within the
budgets: those kept are uniform over the feasible set, exactly. λ is chosen so that as many as possible are kept: mostly,
the mean cost is then the budget. Where that keeps too few (several budgets that hardly meet, densely connected genes), a
Gibbs walk inside the feasible set fills up; its stationary distribution is uniform too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize

from latency.errors import MillipruneError
from latency.graph.network import Network
from latency.graph.pairwise import IntractableCost, PairwiseCost
from search.boltzmann import BoltzmannSampler, softmin
from search.budget import Budget, BudgetError, show_amount

if TYPE_CHECKING:
    from latency.prediction.predictor import LatencyPredictor

PROPOSALS = 2**14
"""Structures proposed at a time; so many without a feasible one, and the rest is filled by a walk."""

LEVELS = 8

SWEEPS = 30
"""Times such a walk redraws every gene: more than enough to forget the start (see tests/search/test_feasible.py)."""

ROUNDING = 1e-12
"""Relative slack for sums of doubles that are mathematically equal to a bound."""

Bound = float | tuple[float, float]


@dataclass(frozen=True)
class Constraint:
    """low ≤ cost ≤ high, in the units of `cost`, which `to_amount` turns into those of the budget."""

    quantity: str
    cost: PairwiseCost
    low: float
    high: float
    to_amount: Callable[[float], float] = float

    def amount(self, value: float) -> float:
        """A value of `cost` in the units of the budget."""
        return float(self.to_amount(value)) if value else 0.0

    def shown(self, value: float) -> str:
        """A value of `cost` as people read it."""
        return show_amount(self.amount(value), self.quantity)


class _Tilt:
    """Proposals with probability ∝ exp(−Σ λ_k cost_k), to be kept with probability exp(Σ λ_k (cost_k − bound_k)).

    `bound` is the end of the budget at which that probability is 1: the upper one where λ is positive. The share that is
    kept is |feasible set| · exp(−λ·bound) / Z(λ): log Z(λ) + λ·bound is convex, and least where most is kept.
    """

    def __init__(self, constraints: Sequence[Constraint], rates: np.ndarray) -> None:
        self.rates = rates / [constraint.high for constraint in constraints]
        self.bounds = np.array([c.high if rate > 0 else c.low for c, rate in zip(constraints, rates, strict=True)])
        self.cost = _sum([c.cost.scaled(rate) for c, rate in zip(constraints, self.rates, strict=True)])

    @classmethod
    def best(cls, constraints: Sequence[Constraint]) -> _Tilt:
        """The one that keeps most. Raises IntractableCost where genes are connected too densely."""

        def loss(rates: np.ndarray) -> float:
            tilt = cls(constraints, rates)
            return -tilt.cost.eliminate(softmin).total + float(tilt.rates @ tilt.bounds)

        corners = np.vstack([np.zeros(len(constraints)), 20 * np.eye(len(constraints))])
        options: Any = {"initial_simplex": corners, "xatol": 0.5, "fatol": 0.01}
        return cls(constraints, minimize(loss, corners[0], method="Nelder-Mead", options=options).x)

    @cached_property
    def sampler(self) -> BoltzmannSampler:
        """Draws the proposals."""
        return BoltzmannSampler(self.cost)

    def log_kept(self, costs: Sequence[np.ndarray]) -> np.ndarray:
        """float64[P]: logarithm of the probability to keep structures of these costs, for those within the budgets."""
        total: np.ndarray = sum((cost - bound) * rate for cost, bound, rate in zip(costs, self.bounds, self.rates, strict=True))
        return total


def _sum(costs: Sequence[PairwiseCost]) -> PairwiseCost:
    total = costs[0]
    for cost in costs[1:]:
        total = total.plus(cost)
    return total


class FeasibleSet:
    """The structures of `network` within all budgets given.

    Args:
        latency_ms, macs, params: an upper bound, or a pair (low, high). At least one.
        predictor: needed for `latency_ms`.

    Raises:
        BudgetError: a bound that is not a positive number, or no bound at all.

    Example:
        >>> feasible = FeasibleSet(net, latency_ms=15.0, predictor=latency.load_predictor("ort"))
        >>> feasible.sample(50, np.random.default_rng(0))      # int64[50, L]
    """

    def __init__(
        self,
        network: Network,
        *,
        latency_ms: Bound | None = None,
        macs: Bound | None = None,
        params: Bound | None = None,
        predictor: LatencyPredictor | None = None,
    ) -> None:
        self.network = network
        self.constraints: list[Constraint] = []
        if latency_ms is not None:
            self.constraints.append(_latency_constraint(network, _pair(latency_ms, "latency"), predictor))
        if macs is not None:
            self.constraints.append(Constraint("macs", network.macs_cost, *_pair(macs, "macs")))
        if params is not None:
            self.constraints.append(Constraint("params", network.params_cost, *_pair(params, "params")))
        if not self.constraints:
            raise BudgetError("no budget given; expected at least one of latency, MACs and parameters.")
        self._grid = self.constraints[0].cost

    @classmethod
    def within(
        cls, network: Network, budgets: Mapping[str, Budget], predictor: LatencyPredictor, unpruned_ms: float
    ) -> FeasibleSet:
        """The structures within `budgets`, by quantity. `unpruned_ms` is what a latency in per cent is a share of."""
        unpruned = unpruned_amounts(network, unpruned_ms)
        resolved = {quantity: budget.resolved(unpruned[quantity]) for quantity, budget in budgets.items()}
        bounds: dict[str, Any] = {quantity: (budget.low, budget.high) for quantity, budget in resolved.items()}
        return cls(network, predictor=predictor, latency_ms=bounds.pop("latency", None), **bounds)

    def bounds(self) -> dict[str, tuple[float, float]]:
        """(low, high) of every budget, by quantity: "latency" in milliseconds, "macs", "params"."""
        return {c.quantity: (c.amount(c.low), c.amount(c.high)) for c in self.constraints}

    def contains(self, widths: np.ndarray) -> np.ndarray:
        """bool[P]: which structures int64[P, L] (made of the genes' choices) are within every budget."""
        return self._inside(self._grid.indices(np.atleast_2d(widths)))

    def smallest(self) -> np.ndarray:
        """int64[L]: the cheapest structure within the budgets.

        Raises:
            BudgetError: nothing fits; names the smallest reachable value.
        """
        return self._grid.widths(self._start[None])[0]

    def levels(self, count: int = LEVELS) -> list[FeasibleSet]:
        """Feasible sets whose first budget is tightened, from near the smallest reachable value to what it is."""
        first, *others = self.constraints
        least = float(first.cost.at(self._start[None])[0])  # which is in all of them
        bounds = least * (first.high / least) ** (np.arange(1, count + 1) / count)
        return [self._with([replace(first, high=float(bound)), *others]) for bound in bounds]

    def _with(self, constraints: list[Constraint]) -> FeasibleSet:
        """With tighter bounds, within which `_start` still is."""
        other = copy.copy(self)
        other.__dict__.pop("_tilt", None)
        other.constraints = constraints
        return other

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """int64[n, L]: random structures, every row within every budget.

        Raises:
            BudgetError: nothing fits.
        """
        start = self._start[None]
        found = [start[:0]]
        while self._tilt is not None and (missing := n - sum(map(len, found))) > 0:
            found.append(self._kept(min(PROPOSALS, 16 * missing + 64), rng)[:missing])
            if not len(found[-1]):
                break
        drawn = np.concatenate(found)
        if len(drawn) < n:
            seeds = np.concatenate([drawn, start])
            drawn = np.concatenate([drawn, self._walked(seeds[rng.integers(len(seeds), size=n - len(drawn))], rng)])
        return self._grid.widths(drawn)

    def mutated(self, widths: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
        """int64[L]: each gene redrawn with `probability` among the choices that stay within the budgets."""
        indices = self._grid.indices(widths[None])
        for gene in rng.permutation(len(self.network.genes)):
            if rng.random() < probability:
                indices[:, gene] = self._redrawn(int(gene), indices, rng)
        return self._grid.widths(indices)[0]

    def crossed(self, first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64[L]: each gene from either parent; while over budget, random genes go back to the first parent's."""
        child = np.where(rng.random(len(first)) < 0.5, first, second)
        for gene in rng.permutation(np.flatnonzero(child != first)):
            if self.contains(child)[0]:
                break
            child[gene] = first[gene]
        return child

    def _kept(self, proposals: int, rng: np.random.Generator) -> np.ndarray:
        """int64[≤ proposals, L]: independent choice indices, uniform over the feasible set."""
        assert self._tilt is not None
        indices = self._tilt.sampler.draw(proposals, rng)
        costs = [constraint.cost.at(indices) for constraint in self.constraints]
        keep = np.log(rng.random(proposals)) < self._tilt.log_kept(costs)
        for constraint, cost in zip(self.constraints, costs, strict=True):
            keep &= (cost <= constraint.high) & (cost >= constraint.low)
        return indices[keep]

    @cached_property
    def _tilt(self) -> _Tilt | None:
        """The proposals of which most are kept; None where there are none."""
        try:
            return _Tilt.best(self.constraints)
        except IntractableCost:
            return None

    def _walked(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64[P, L]: where `SWEEPS` sweeps of the Gibbs walk lead."""
        for _ in range(SWEEPS):
            for gene in rng.permutation(len(self.network.genes)):
                indices[:, gene] = self._redrawn(int(gene), indices, rng)
        return indices

    def _redrawn(self, gene: int, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64[P]: for each structure a uniform draw among the choices of `gene` that keep it feasible."""
        allowed = np.ones((len(indices), len(self._grid.choices[gene])), dtype=bool)
        for constraint in self.constraints:
            by_choice = constraint.cost.conditional(gene, indices)
            now = by_choice[np.arange(len(indices)), indices[:, gene]]
            total = (constraint.cost.at(indices) - now)[:, None] + by_choice
            allowed &= total <= constraint.high * (1 - ROUNDING)
            allowed &= total >= constraint.low * (1 + ROUNDING)
        allowed[np.arange(len(indices)), indices[:, gene]] = True
        drawn: np.ndarray = (rng.random(allowed.shape) * allowed).argmax(axis=1)
        return drawn

    def _inside(self, indices: np.ndarray) -> np.ndarray:
        inside = np.ones(len(indices), dtype=bool)
        for constraint in self.constraints:
            cost = constraint.cost.at(indices)
            inside &= (cost <= constraint.high) & (cost >= constraint.low)
        return inside

    @cached_property
    def _start(self) -> np.ndarray:
        """int64[L]: choice indices of one feasible structure, the cheapest there is."""
        starts = self._cheapest()
        for start in starts:
            if self._inside(start[None])[0]:
                return start
        for start in starts:
            climbed = self._climbed(start)
            if climbed is not None:
                return climbed
        raise BudgetError(self._why_empty(starts))

    def _cheapest(self) -> list[np.ndarray]:
        """Exact minima: of all budgets' used shares together, then of each budget alone."""
        shares = [constraint.cost.scaled(1 / constraint.high) for constraint in self.constraints]
        return [cost.argmin() for cost in (shares if len(shares) == 1 else [_sum(shares), *shares])]

    def _climbed(self, start: np.ndarray) -> np.ndarray | None:
        """From below a range, the least steps up that stay under every upper bound; None if that leads nowhere."""
        indices = start.copy()
        while True:
            low = [c for c in self.constraints if c.cost.at(indices[None])[0] < c.low]
            if any(c.cost.at(indices[None])[0] > c.high for c in self.constraints):
                return None
            if not low:
                return indices
            steps = np.tile(indices, (len(indices), 1)) + np.eye(len(indices), dtype=np.int64)
            steps = steps[[steps[g, g] < len(self._grid.choices[g]) for g in range(len(indices))]]
            under = np.ones(len(steps), dtype=bool)
            for constraint in self.constraints:
                under &= constraint.cost.at(steps) <= constraint.high
            gain = low[0].cost.at(steps) - low[0].cost.at(indices[None])[0]
            usable = under & (gain > 0)
            if not usable.any():
                return None
            indices = steps[np.where(usable, gain, np.inf).argmin()]

    @property
    def _in_multiples(self) -> str:
        align = self.network.align
        return f" with widths in multiples of {align} (a smaller --align allows others)" if align > 1 else ""

    def _why_empty(self, starts: Sequence[np.ndarray]) -> str:
        for constraint in self.constraints:
            least = float(constraint.cost.at(constraint.cost.argmin()[None])[0])
            if least > constraint.high:
                return (
                    f"no structure of {self.network.name} fits {constraint.quantity} {constraint.shown(constraint.high)}: "
                    f"the smallest reachable is {constraint.shown(least)}{self._in_multiples}."
                )
            most = -float(constraint.cost.scaled(-1.0).at(constraint.cost.scaled(-1.0).argmin()[None])[0])
            if most < constraint.low:
                return (
                    f"no structure of {self.network.name} reaches {constraint.quantity} {constraint.shown(constraint.low)}: "
                    f"the largest reachable is {constraint.shown(most)}."
                )
        best = ", ".join(f"{c.quantity} {c.shown(float(c.cost.at(starts[0][None])[0]))}" for c in self.constraints)
        return f"no structure of {self.network.name} was found within all budgets together; the smallest reachable has {best}."


def unpruned_amounts(network: Network, unpruned_ms: float) -> dict[str, float]:
    """What the unpruned network costs, by quantity; its milliseconds are measured elsewhere."""
    full = network.max_widths
    return {"latency": unpruned_ms, "macs": float(network.macs(full)), "params": float(network.params(full))}


def _pair(bound: Bound, quantity: str) -> tuple[float, float]:
    low, high = bound if isinstance(bound, tuple) else (0.0, bound)
    if not (0 <= low <= high and 0 < high < float("inf")):
        raise BudgetError(f"{quantity} budget {bound} given; expected a positive number, or a pair (low, high).")
    return float(low), float(high)


def _latency_constraint(network: Network, bounds: tuple[float, float], predictor: LatencyPredictor | None) -> Constraint:
    if predictor is None:
        raise MillipruneError("a latency budget needs a predictor; pass predictor=latency.load_predictor(...).")
    cost = predictor.latency_cost(network)
    link = cost.link
    low = float(link.to_score(bounds[0])) if bounds[0] > 0 else 0.0
    return Constraint("latency", cost.score, low, float(link.to_score(bounds[1])), link.to_ms)
