"""The search on a toy objective: repeatable, resumable, without double work, and better than chance."""

import importlib.util
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

import latency
from pruning.evaluate import Score
from search.budget import BudgetError
from search.feasible import FeasibleSet
from search.genetic import Evolution, SearchError, _taken, best, evolve

EVOLUTION = Evolution(population=16, generations=8, parents=5)


@pytest.fixture(scope="module")
def feasible(tiny_network) -> FeasibleSet:
    return FeasibleSet(tiny_network, macs=0.5 * tiny_network.macs(tiny_network.max_widths))


def worth(widths: np.ndarray) -> float:
    """Rewards wide genes, but with a preference among them that the budget must trade off."""
    return float(widths @ np.array([3.0, 1.0, 0.5, 2.0, 1.5]))


def guessed(widths) -> float:
    return float(widths[0] % 7) / 7


def run(feasible, journal, value=worth, seed=0, evolution=EVOLUTION, **options):
    """A search in which the accuracy says nothing, and the loss everything."""

    def evaluate(widths: np.ndarray) -> Score:
        return Score(guessed(widths), loss=-value(widths))

    return evolve(feasible, evaluate, evolution, seed=seed, journal=journal, progress=lambda done, top: None, **options)


def test_every_candidate_is_feasible_and_evaluated_once(feasible, tmp_path) -> None:
    candidates = run(feasible, tmp_path / "j")
    assert len(candidates) == EVOLUTION.evaluations
    assert len({candidate.widths for candidate in candidates}) == len(candidates)
    assert feasible.contains(np.array([candidate.widths for candidate in candidates])).all()
    assert all(candidate.loss == -worth(np.array(candidate.widths)) for candidate in candidates)
    assert all(candidate.accuracy == guessed(candidate.widths) for candidate in candidates)


def test_the_search_comes_close_to_the_best_of_all_structures(feasible, tiny_network, tmp_path) -> None:
    structures = np.array(list(itertools.product(*(gene.choices for gene in tiny_network.genes))))
    values = np.sort([worth(widths) for widths in structures[feasible.contains(structures)]])
    found = -best(run(feasible, tmp_path / "j"), 1)[0].loss
    assert found >= np.quantile(values, 0.998)
    first = [-c.loss for c in run(feasible, tmp_path / "j")[: EVOLUTION.population]]
    assert found > max(first)


def test_what_is_given_comes_first_and_nothing_twice(feasible, tmp_path) -> None:
    """Others know nothing of it before the first generation is whole; from then on it is a parent like any other."""
    given = feasible.sample(3, np.random.default_rng(5))
    candidates = run(feasible, tmp_path / "j", lambda widths: float(tuple(widths) in map(tuple, given)), first=given)
    assert [candidate.widths for candidate in candidates[:3]] == [tuple(widths) for widths in given]
    assert len({candidate.widths for candidate in candidates}) == EVOLUTION.evaluations
    second = np.array([candidate.widths for candidate in candidates[16:32]])
    assert min((given != widths).sum(axis=1).min() for widths in second) <= 2


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


HOLDER = """
import sys, time
from pathlib import Path
from search.genetic import _storage

_storage(Path(sys.argv[1]))._backend._lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.timeout(60)
def test_what_was_killed_while_it_wrote_its_journal_is_not_waited_for(feasible, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a run's folder is given as a relative path, as a rule
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", HOLDER, "j"], env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    assert len(run(feasible, Path("j"))) == EVOLUTION.evaluations


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


def test_a_search_by_accuracy_of_an_earlier_version_is_not_gone_on_with(feasible, tmp_path) -> None:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "j")))
    genes = {gene.name: list(gene.choices) for gene in feasible.network.genes}
    optuna.create_study(storage=storage, study_name="search", direction="maximize").set_user_attr("genes", genes)
    with pytest.raises(SearchError, match="ranked by accuracy"):
        run(feasible, tmp_path / "j")


def test_networks_with_other_genes_cannot_share_a_journal(feasible, tiny_module, tmp_path) -> None:
    run(feasible, tmp_path / "j", evolution=Evolution(4, 1))
    coarse = latency.trace(tiny_module, (1, 3, 16, 16), align=8)
    with pytest.raises(SearchError, match="journal"):
        run(FeasibleSet(coarse, macs=1e9), tmp_path / "j", evolution=Evolution(4, 2))


def hypervolume(points: np.ndarray, worst: tuple[float, float]) -> float:
    """Area between (cost, worth) points and the corner of the highest cost and the lowest worth."""
    area, reached = 0.0, worst[1]
    for cost, value in sorted(map(tuple, points), key=lambda point: point[0]):
        if value > reached:
            area += (worst[0] - cost) * (value - reached)
            reached = value
    return area


def test_a_pareto_search_covers_the_front_of_all_structures(tiny_network, tmp_path) -> None:
    structures = np.array(list(itertools.product(*(gene.choices for gene in tiny_network.genes))))
    macs = tiny_network.macs(structures)
    feasible = FeasibleSet(tiny_network, macs=float(macs.max()))
    cost = tiny_network.macs_cost

    def latency(widths: np.ndarray) -> np.ndarray:
        return cost.at_widths(np.atleast_2d(widths))

    found = run(feasible, tmp_path / "j", evolution=Evolution(24, 15), latency_ms=latency)
    rows = np.array([candidate.widths for candidate in found])
    everything = np.stack([macs, [worth(widths) for widths in structures]], axis=1)
    seen = np.stack([latency(rows), [-candidate.loss for candidate in found]], axis=1)
    drawn = np.unique(feasible.sample(len(found), np.random.default_rng(0)), axis=0)
    at_random = np.stack([latency(drawn), [worth(widths) for widths in drawn]], axis=1)
    corner = (float(macs.max()), 0.0)
    best_area = hypervolume(everything, corner)
    assert hypervolume(seen, corner) > 0.97 * best_area
    assert hypervolume(seen, corner) > hypervolume(at_random, corner)
    assert run(feasible, tmp_path / "j", evolution=Evolution(24, 15), latency_ms=latency) == found


WORKER = """
import sys, time
import numpy as np
import latency
from pathlib import Path
from pruning.evaluate import Score
from pruning.networks import load
from search.feasible import FeasibleSet
from search.genetic import Evolution, evolve

network = latency.trace(load("tinynet:tiny"), (1, 3, 16, 16), align=4, name="tiny")
feasible = FeasibleSet(network, macs=0.5 * network.macs(network.max_widths))
evaluated = Path(sys.argv[2]).open("a", buffering=1)

def evaluate(widths):
    time.sleep(0.05)
    evaluated.write(" ".join(map(str, widths)) + "\\n")
    return Score(0.5, -float(widths @ np.array([3.0, 1.0, 0.5, 2.0, 1.5])))

found = evolve(feasible, evaluate, Evolution(10, 6), seed=0, journal=sys.argv[1], progress=lambda done, top: None)
print(len(found), max(-c.loss for c in found))
"""


def share(url: str, folder: Path) -> None:
    """Two workers on one study: all is done once, by both, and as well as by one."""
    paths = os.pathsep.join(str(Path(__file__).parents[part]) for part in (1, 2))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, url, str(folder / f"worker{number}")],
            env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in (1, 2)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=300) for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), outputs
    shares = [(folder / f"worker{number}").read_text().splitlines() for number in (1, 2)]
    assert min(map(len, shares)) >= 5
    everything = [line for part in shares for line in part]
    assert len(everything) == len(set(everything))
    assert 60 <= len(everything) <= 61
    assert {float(out.split()[1]) for out, _ in outputs} <= {max(float(out.split()[1]) for out, _ in outputs)}


def test_a_shared_trial_leaves_to_earlier_ones_what_they_took_even_while_they_draw(tiny_network, monkeypatch) -> None:
    study = optuna.create_study()
    finished, slow, dead, asking = (study.ask() for _ in range(4))

    def draw(trial: optuna.Trial) -> tuple[int, ...]:
        return tuple(trial.suggest_categorical(gene.name, gene.choices) for gene in tiny_network.genes)

    first = draw(finished)
    study.tell(finished, 0.5)
    waiting = ThreadPoolExecutor(1).submit(_taken, study, asking.number, tiny_network)
    with pytest.raises(TimeoutError):
        waiting.result(0.3)  # two of the earlier ones are still drawing
    second = draw(slow)
    with pytest.raises(TimeoutError):
        waiting.result(0.3)
    monkeypatch.setattr("search.genetic.DRAWING", timedelta(0))
    assert waiting.result(30) == {first, second}  # the other has been given up
    assert _taken(study, dead.number, tiny_network) == {first, second}
    assert _taken(study, slow.number, tiny_network) == {first}


def test_two_processes_share_a_search_through_a_database_file(tmp_path) -> None:
    share(f"sqlite:///{tmp_path}/study.db?timeout=60", tmp_path)


@pytest.fixture
def postgresql(tmp_path) -> Iterator[str]:
    """URL of a server of our own on loopback."""
    if shutil.which("initdb") is None or importlib.util.find_spec("psycopg2") is None:
        pytest.skip("PostgreSQL (initdb, pg_ctl) or psycopg2 is not installed")
    folder, log = tmp_path / "server", tmp_path / "server.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    as_user = ["setpriv", "--reuid=nobody", "--clear-groups"] if os.geteuid() == 0 else []  # it refuses to run as root
    if as_user:
        os.chmod(tmp_path, 0o777)
        for parent in itertools.takewhile(lambda folder: folder != Path(tempfile.gettempdir()), tmp_path.parents):
            os.chmod(parent, 0o755)
    subprocess.run([*as_user, "initdb", "-D", folder, "-U", "milli", "-A", "trust"], check=True, capture_output=True)
    options = f"-p {port} -k {tmp_path} -c listen_addresses=127.0.0.1"
    subprocess.run(
        [*as_user, "pg_ctl", "-D", folder, "-o", options, "-l", log, "-w", "start"], check=True, stdout=subprocess.DEVNULL
    )
    yield f"postgresql+psycopg2://milli@127.0.0.1:{port}/postgres"
    subprocess.run([*as_user, "pg_ctl", "-D", folder, "-m", "immediate", "stop"], check=True, capture_output=True)


def test_two_processes_share_a_search_through_postgresql(postgresql: str, tmp_path) -> None:
    share(postgresql, tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "postgresql+psycopg2://someone:secret@127.0.0.1:1/none",
        "madeup://host/name",
        "sqlite:////no/such/folder/x.db",
    ],
)
def test_a_database_that_cannot_be_used_is_a_clear_error(url: str, feasible) -> None:
    with pytest.raises(SearchError, match="cannot be used") as error:
        run(feasible, url)
    assert "secret" not in str(error.value)
