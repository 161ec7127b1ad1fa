"""MetaPruning's evolutionary search (section 3.2) as an optuna sampler: the operators are ours, storage is optuna's.

Trial k of generation g is a mutant, a crossover or a random structure; parents are the best ten of all earlier generations.
Everything random comes from a generator seeded by (seed, k), so an interrupted search goes on to the same result.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from latency.errors import MillipruneError
from latency.network import Network
from search.feasible import FeasibleSet

ATTEMPTS = 50
"""Draws before a slot gives up finding a structure that has not been evaluated yet."""


class SearchError(MillipruneError):
    """A search that cannot start or go on."""


@dataclass(frozen=True)
class Evolution:
    """The paper's numbers: 20 generations of 50, half mutants (p = 0.1) and half crossovers of the best ten."""

    population: int = 50
    generations: int = 20
    parents: int = 10
    mutants: float = 0.5
    crossovers: float = 0.5
    mutation: float = 0.1

    @property
    def evaluations(self) -> int:
        return self.population * self.generations


@dataclass(frozen=True)
class Candidate:
    """An evaluated structure: widths and sub-validation accuracy (0 … 1)."""

    widths: tuple[int, ...]
    accuracy: float


class MetaPruningSampler(optuna.samplers.BaseSampler):
    """Proposes feasible structures that have not been evaluated before."""

    def __init__(self, feasible: FeasibleSet, evolution: Evolution, seed: int) -> None:
        self.feasible = feasible
        self.evolution = evolution
        self.seed = seed
        self._space = {g.name: CategoricalDistribution(g.choices) for g in feasible.network.genes}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return dict(self._space)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        done = evaluated(study, self.feasible.network)
        widths = self.propose(done)
        return dict(zip(self._space, map(int, widths), strict=True))

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        raise SearchError(f"optuna asked for the unknown parameter '{name}'.")

    def propose(self, done: list[Candidate]) -> np.ndarray:
        """int64[L]: the next structure after those in `done`, which are in order of evaluation."""
        rng = np.random.default_rng((self.seed, len(done)))
        generation, slot = divmod(len(done), self.evolution.population)
        parents = best(done[: generation * self.evolution.population], self.evolution.parents)
        known = {candidate.widths for candidate in done}
        for _ in range(ATTEMPTS):
            widths = self._offspring(slot / self.evolution.population, parents, rng)
            if tuple(map(int, widths)) not in known:
                return widths
        for widths in self.feasible.sample(ATTEMPTS, rng):
            if tuple(map(int, widths)) not in known:
                return np.asarray(widths)
        raise Exhausted("every structure within the budget seems to have been evaluated.")

    def _offspring(self, position: float, parents: list[Candidate], rng: np.random.Generator) -> np.ndarray:
        evolution = self.evolution
        if parents and position < evolution.mutants:
            parent = parents[rng.integers(len(parents))]
            return self.feasible.mutated(np.array(parent.widths), evolution.mutation, rng)
        if len(parents) > 1 and position < evolution.mutants + evolution.crossovers:
            first, second = rng.choice(len(parents), 2, replace=False)
            return self.feasible.crossed(np.array(parents[first].widths), np.array(parents[second].widths), rng)
        return self.feasible.sample(1, rng)[0]


class Exhausted(SearchError):
    """No structure is left to evaluate: a search in a tiny feasible set ends early, and well."""


def best(candidates: list[Candidate], count: int) -> list[Candidate]:
    """The most accurate `count`, best first; of equals the earlier."""
    return sorted(candidates, key=lambda candidate: -candidate.accuracy)[:count]


def evaluated(study: optuna.Study, network: Network) -> list[Candidate]:
    """All finished candidates in order of their trials."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [Candidate(tuple(trial.params[gene.name] for gene in network.genes), float(trial.values[0])) for trial in trials]


def evolve(
    feasible: FeasibleSet,
    accuracy: Callable[[np.ndarray], float],
    evolution: Evolution,
    *,
    seed: int,
    journal: Path,
    progress: Callable[[int, float], object],
) -> list[Candidate]:
    """Run the search, or what is left of it, and return all candidates in order of evaluation.

    Args:
        accuracy: of a structure int64[L]; called once for each candidate, ever.
        journal: file that keeps every evaluation as soon as it is done.
        progress: called with the number of candidates evaluated and the best accuracy so far.

    Raises:
        BudgetError: nothing fits the budget.
        SearchError: the journal cannot be used.
    """
    feasible.smallest()
    sampler = MetaPruningSampler(feasible, evolution, seed)
    study = _study(journal, sampler, feasible.network)
    candidates = evaluated(study, feasible.network)
    while len(candidates) < evolution.evaluations:
        progress(len(candidates), max((c.accuracy for c in candidates), default=float("nan")))
        try:
            trial = study.ask()
            widths = np.array([trial.suggest_categorical(g.name, g.choices) for g in feasible.network.genes])
        except Exhausted:
            break
        study.tell(trial, accuracy(widths))
        candidates = evaluated(study, feasible.network)
    progress(len(candidates), max((c.accuracy for c in candidates), default=float("nan")))
    return candidates


def _study(journal: Path, sampler: MetaPruningSampler, network: Network) -> optuna.Study:
    """The study in `journal`, which must be of these genes, or a new one."""
    genes = {gene.name: list(gene.choices) for gene in network.genes}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            journal.parent.mkdir(parents=True, exist_ok=True)
            _drop_partial_line(journal)
            storage = JournalStorage(JournalFileBackend(str(journal)))
            study = optuna.create_study(
                storage=storage, sampler=sampler, study_name="search", direction="maximize", load_if_exists=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise SearchError(f"the search's journal '{journal}' cannot be used: {error}; remove it to start over.") from error
    if study.user_attrs.setdefault("genes", genes) != genes:
        raise SearchError(f"the search's journal '{journal}' is of a network with other genes; remove it to start over.")
    study.set_user_attr("genes", genes)
    return study


def _drop_partial_line(journal: Path) -> None:
    """What a machine that went down left behind its last whole record."""
    if journal.exists():
        text = journal.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(journal, whole)
