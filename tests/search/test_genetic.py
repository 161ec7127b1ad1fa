"""The search on a toy objective: repeatable, resumable, without double work, and better than chance."""

import itertools
import json

import numpy as np
import pytest

import latency
from search.budget import BudgetError
from search.feasible import FeasibleSet
from search.genetic import Evolution, SearchError, best, evolve

EVOLUTION = Evolution(population=16, generations=8, parents=5)


@pytest.fixture(scope="module")
def feasible(tiny_network) -> FeasibleSet:
    return FeasibleSet(tiny_network, macs=0.5 * tiny_network.macs(tiny_network.max_widths))


def worth(widths: np.ndarray) -> float:
    """Rewards wide genes, but with a preference among them that the budget must trade off."""
    return float(widths @ np.array([3.0, 1.0, 0.5, 2.0, 1.5]))


def run(feasible, journal, accuracy=worth, seed=0, evolution=EVOLUTION):
    return evolve(feasible, accuracy, evolution, seed=seed, journal=journal, progress=lambda done, top: None)


def test_every_candidate_is_feasible_and_evaluated_once(feasible, tmp_path) -> None:
    candidates = run(feasible, tmp_path / "j")
    assert len(candidates) == EVOLUTION.evaluations
    assert len({candidate.widths for candidate in candidates}) == len(candidates)
    assert feasible.contains(np.array([candidate.widths for candidate in candidates])).all()
    assert all(candidate.accuracy == worth(np.array(candidate.widths)) for candidate in candidates)


def test_the_search_comes_close_to_the_best_of_all_structures(feasible, tiny_network, tmp_path) -> None:
    structures = np.array(list(itertools.product(*(gene.choices for gene in tiny_network.genes))))
    values = np.sort([worth(widths) for widths in structures[feasible.contains(structures)]])
    found = best(run(feasible, tmp_path / "j"), 1)[0].accuracy
    assert found >= np.quantile(values, 0.998)
    first = [c.accuracy for c in run(feasible, tmp_path / "j")[: EVOLUTION.population]]
    assert found > max(first)


def test_the_seed_decides(feasible, tmp_path) -> None:
    once, again, other = (run(feasible, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert once == again
    assert once != other


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_search_goes_on_to_the_same_result(feasible, tmp_path, error) -> None:
    straight = run(feasible, tmp_path / "straight")
    evaluated: list[tuple[int, ...]] = []

    def interrupted(widths: np.ndarray) -> float:
        if len(evaluated) in (5, 40):
            evaluated.append(())
            raise error
        evaluated.append(tuple(map(int, widths)))
        return worth(widths)

    for _ in range(2):
        with pytest.raises(error):
            run(feasible, tmp_path / "broken", interrupted)
    assert run(feasible, tmp_path / "broken", interrupted) == straight
    real = [widths for widths in evaluated if widths]
    assert len(real) == len(set(real)) == EVOLUTION.evaluations


def test_a_journal_cut_off_in_the_middle_of_a_line_is_continued_from_its_whole_lines(feasible, tmp_path) -> None:
    straight = run(feasible, tmp_path / "straight")
    text = (tmp_path / "straight").read_bytes()
    (tmp_path / "cut").write_bytes(text[: int(len(text) * 0.6)])
    assert run(feasible, tmp_path / "cut") == straight


def test_a_tiny_feasible_set_ends_the_search_early_and_well(tiny_network, tmp_path) -> None:
    smallest = FeasibleSet(tiny_network, macs=1e9).network.macs_cost
    least = float(smallest.at(smallest.argmin()[None])[0])
    feasible = FeasibleSet(tiny_network, macs=least * 1.05)
    structures = np.array(list(itertools.product(*(gene.choices for gene in tiny_network.genes))))
    inside = {tuple(map(int, widths)) for widths in structures[feasible.contains(structures)]}
    assert 1 <= len(inside) < EVOLUTION.evaluations
    assert {candidate.widths for candidate in run(feasible, tmp_path / "j")} == inside


def test_an_impossible_budget_stops_before_any_work(tiny_network, tmp_path) -> None:
    with pytest.raises(BudgetError, match="smallest reachable"):
        run(FeasibleSet(tiny_network, macs=1.0), tmp_path / "j")
    assert not (tmp_path / "j").exists()


def test_a_file_that_is_no_journal_is_a_clear_error(feasible, tmp_path) -> None:
    (tmp_path / "j").write_text("not a journal\n" + json.dumps({"op": 77}) + "\n")
    with pytest.raises(SearchError, match="journal"):
        run(feasible, tmp_path / "j")


def test_networks_with_other_genes_cannot_share_a_journal(feasible, tiny_module, tmp_path) -> None:
    run(feasible, tmp_path / "j", evolution=Evolution(4, 1))
    coarse = latency.trace(tiny_module, (1, 3, 16, 16), align=8)
    with pytest.raises(SearchError, match="journal"):
        run(FeasibleSet(coarse, macs=1e9), tmp_path / "j", evolution=Evolution(4, 2))
