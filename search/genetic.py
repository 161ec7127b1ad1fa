"""MetaPruning's evolutionary search (section 3.2) as an optuna sampler: the operators are ours, storage is optuna's.

Trial k of generation g is a mutant, a crossover or a random structure, the very first ones are given; parents are the best
ten of all earlier generations, or in a Pareto search as many as a generation has, chosen as NSGA-II does. Everything random
comes from a generator seeded by (seed, k), so an interrupted search goes on to the same result. Several processes may
share one search through a database: each draws after all that began before it have drawn, and leaves them what they took.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from latency.errors import MillipruneError
from latency.graph.network import Network
from pruning.evaluate import Score
from search.config import without_password
from search.feasible import FeasibleSet
from search.pareto import nondominated_sort

STALE = timedelta(hours=1)
"""A shared candidate that was begun so long ago counts as given up."""

DRAWING = timedelta(minutes=1)
"""So does one that still has no structure after this long: its process has died."""

POLL_SECONDS = 0.02

ACCURACY = "accuracy"
"""A trial's attribute; its value is the loss."""

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
    """An evaluated structure: widths, sub-validation accuracy (0 … 1) and loss, by which it is ranked."""

    widths: tuple[int, ...]
    accuracy: float
    loss: float


class MetaPruningSampler(optuna.samplers.BaseSampler):
    """Proposes feasible structures that have not been evaluated before.

    Args:
        first: int64[K, L], feasible structures to begin with.
        latency_ms: float64[P] of structures int64[P, L]; given, the search is for the front of accuracy against latency.
    """

    def __init__(
        self,
        feasible: FeasibleSet,
        evolution: Evolution,
        seed: int,
        first: np.ndarray | None = None,
        latency_ms: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.feasible = feasible
        self.evolution = evolution
        self.seed = seed
        self.first: Sequence[np.ndarray] = () if first is None else list(first)
        self.latency_ms = latency_ms
        self.finished = Finished(feasible.network)
        self.space = {g.name: CategoricalDistribution(g.choices) for g in feasible.network.genes}
        self._levels = feasible.levels() if latency_ms else [feasible]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return dict(self.space)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        taken = _taken(study, trial.number, self.feasible.network)
        return self.params(self.propose(self.finished.of(study), trial.number, taken))

    def params(self, widths: np.ndarray) -> dict[str, int]:
        """A structure int64[L] as a trial's parameters."""
        return dict(zip(self.space, map(int, widths), strict=True))

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        raise SearchError(f"optuna asked for the unknown parameter '{name}'.")

    def propose(self, done: list[Candidate], number: int, taken: frozenset[tuple[int, ...]] = frozenset()) -> np.ndarray:
        """int64[L]: structure `number`, given those in `done`, in order of evaluation, and those that are `taken`."""
        if number < len(self.first):
            return self.first[number]
        rng = np.random.default_rng((self.seed, number))
        generation, slot = len(done) // self.evolution.population, number % self.evolution.population
        parents = self._parents(done[: generation * self.evolution.population])
        known = {candidate.widths for candidate in done} | taken
        for _ in range(ATTEMPTS):
            widths = self._offspring(slot, parents, rng)
            if tuple(map(int, widths)) not in known:
                return widths
        for widths in self.feasible.sample(ATTEMPTS, rng):
            if tuple(map(int, widths)) not in known:
                return np.asarray(widths)
        raise Exhausted("every structure within the budget seems to have been evaluated.")

    def _parents(self, candidates: list[Candidate]) -> list[Candidate]:
        if self.latency_ms is None or not candidates:
            return best(candidates, self.evolution.parents)
        latency_ms = self.latency_ms(np.array([candidate.widths for candidate in candidates]))
        order = nondominated_sort(np.stack([[c.loss for c in candidates], latency_ms], axis=1))
        return [candidates[index] for index in order[: self.evolution.population]]

    def _offspring(self, slot: int, parents: list[Candidate], rng: np.random.Generator) -> np.ndarray:
        evolution, position = self.evolution, slot / self.evolution.population
        if parents and position < evolution.mutants:
            parent = parents[rng.integers(len(parents))]
            return self.feasible.mutated(np.array(parent.widths), evolution.mutation, rng)
        if len(parents) > 1 and position < evolution.mutants + evolution.crossovers:
            first, second = rng.choice(len(parents), 2, replace=False)
            return self.feasible.crossed(np.array(parents[first].widths), np.array(parents[second].widths), rng)
        return self._levels[slot % len(self._levels)].sample(1, rng)[0]


class Exhausted(SearchError):
    """No structure is left to evaluate: a search in a tiny feasible set ends early, and well."""


def best(candidates: list[Candidate], count: int) -> list[Candidate]:
    """The `count` of least loss, best first; of equals the earlier."""
    return sorted(candidates, key=lambda candidate: candidate.loss)[:count]


class Finished:
    """The finished candidates of one study, each of them read once."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._read: dict[int, Candidate] = {}

    def of(self, study: optuna.Study) -> list[Candidate]:
        """All there are by now, in order of their trials."""
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        for trial in trials:
            if trial.number not in self._read:
                widths, accuracy = _widths(trial, self._network), float(trial.user_attrs[ACCURACY])
                self._read[trial.number] = Candidate(widths, accuracy, float(trial.values[0]))
        return [self._read[trial.number] for trial in trials]


def _widths(trial: FrozenTrial, network: Network) -> tuple[int, ...]:
    return tuple(trial.params[gene.name] for gene in network.genes)


def _taken(study: optuna.Study, number: int, network: Network) -> frozenset[tuple[int, ...]]:
    """Structures of all trials begun before trial `number`, finished or not; waits while one of them is being drawn."""
    while True:
        trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE))
        earlier = [trial for trial in trials if trial.number < number and _counts(trial, network)]
        if all(_drawn(trial, network) for trial in earlier):
            return frozenset(_widths(trial, network) for trial in earlier)
        time.sleep(POLL_SECONDS)


def _drawn(trial: FrozenTrial, network: Network) -> bool:
    return len(trial.params) == len(network.genes)


def _counts(trial: FrozenTrial, network: Network) -> bool:
    """Whether it is finished, or may still be by the process that began it."""
    patience = STALE if _drawn(trial, network) else DRAWING
    begun = trial.datetime_start
    return trial.state == TrialState.COMPLETE or (begun is not None and datetime.now() - begun < patience)


def evolve(
    feasible: FeasibleSet,
    evaluate: Callable[[np.ndarray], Score],
    evolution: Evolution,
    *,
    seed: int,
    journal: Path | str,
    progress: Callable[[int, Candidate | None], object],
    first: np.ndarray | None = None,
    latency_ms: Callable[[np.ndarray], np.ndarray] | None = None,
    study_name: str = "search",
) -> list[Candidate]:
    """Run the search, or what is left of it, and return all candidates in order of evaluation.

    Args:
        evaluate: of a structure int64[L]; called once for each candidate, ever.
        journal: file that keeps every evaluation as soon as it is done; or the URL of a database, through which several
            processes work on the study called `study_name`.
        progress: called with the number of candidates evaluated and the best so far.
        first: int64[K, L], feasible structures that differ, which are evaluated before any other.
        latency_ms: float64[P] of structures int64[P, L]; given, the search is for the front of accuracy against latency.

    Raises:
        BudgetError: nothing fits the budget.
        SearchError: the journal cannot be used.
    """
    feasible.smallest()
    network, shared = feasible.network, isinstance(journal, str)
    sampler = MetaPruningSampler(feasible, evolution, seed, first, latency_ms)
    study = _study(journal, sampler, network, study_name)
    candidates = sampler.finished.of(study)
    while len(candidates) < evolution.evaluations:
        progress(len(candidates), next(iter(best(candidates, 1)), None))
        try:
            if shared:
                _evaluate_shared(study, sampler, evaluate)
            else:
                _evaluate_next(study, sampler, evaluate, candidates)
        except Exhausted:
            break
        candidates = sampler.finished.of(study)
    progress(len(candidates), next(iter(best(candidates, 1)), None))
    return candidates


def _evaluate_next(
    study: optuna.Study, sampler: MetaPruningSampler, evaluate: Callable[[np.ndarray], Score], done: list[Candidate]
) -> None:
    """One more candidate than those `done`, which is written once it has been evaluated: a record for every gene would take
    longer than a GPU takes for the candidate."""
    widths = sampler.propose(done, len(done))
    score = evaluate(widths)
    study.add_trial(
        create_trial(
            value=score.loss,
            params=sampler.params(widths),
            distributions=dict(sampler.space),
            user_attrs={ACCURACY: score.accuracy},
        )
    )


def _evaluate_shared(study: optuna.Study, sampler: MetaPruningSampler, evaluate: Callable[[np.ndarray], Score]) -> None:
    """One more candidate, which other processes see as soon as it has been drawn."""
    trial = study.ask()
    widths = np.array([trial.suggest_categorical(name, one.choices) for name, one in sampler.space.items()])
    score = evaluate(widths)
    trial.set_user_attr(ACCURACY, score.accuracy)
    study.tell(trial, score.loss)


def _study(journal: Path | str, sampler: MetaPruningSampler, network: Network, name: str) -> optuna.Study:
    """The study in `journal`, which must be of these genes, or a new one."""
    genes, shown = {gene.name: list(gene.choices) for gene in network.genes}, without_password(str(journal))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            study = optuna.create_study(
                storage=_storage(journal), sampler=sampler, study_name=name, direction="minimize", load_if_exists=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise SearchError(f"the search's journal '{shown}' cannot be used: {error}; remove it to start over.") from error
        except (ImportError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise SearchError(
                f"the database '{shown}' cannot be used: {str(error).splitlines()[0]}; "
                "expected a URL such as postgresql+psycopg2://user@host/name, its server running and its driver installed."
            ) from error
    if study.user_attrs.setdefault("genes", genes) != genes:
        raise SearchError(f"the search's journal '{shown}' is of a network with other genes; remove it to start over.")
    if study.direction != StudyDirection.MINIMIZE:
        raise SearchError(f"the search in '{shown}' was begun by a version that ranked by accuracy; remove it to start over.")
    study.set_user_attr("genes", genes)
    return study


def _storage(journal: Path | str) -> Any:
    if isinstance(journal, str):
        try:
            return RDBStorage(journal)
        except SQLAlchemyError:  # another process may be making the tables at this very moment
            time.sleep(2)
            return RDBStorage(journal)
    journal.parent.mkdir(parents=True, exist_ok=True)
    _drop_partial_line(journal)
    lock: Any = FileLock(f"{journal}.flock")  # the system opens it when a process is killed; optuna's own locks stay shut
    return JournalStorage(JournalFileBackend(str(journal), lock))


def _drop_partial_line(journal: Path) -> None:
    """What a machine that went down left behind its last whole record."""
    if journal.exists():
        text = journal.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.truncate(journal, whole)
