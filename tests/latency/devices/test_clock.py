"""The clocks of devices, on durations that are scripted."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency.devices import clock, core
from latency.devices.clock import CpuClock, GpuClock, mean_of_quiet
from latency.devices.core import MOVES, SIZE, CoreMonitor
from latency.devices.nvml import GpuMonitor


class Card:
    """A GPU whose launches take `ms`, on a time of its own."""

    def __init__(self, ms: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms, self.now, self.replays = ms, 0.0, list[int]()
        monkeypatch.setattr(clock.time, "monotonic", lambda: self.now)

    def elapsed_ms(self, replays: int) -> float:
        self.replays.append(replays)
        self.now += replays * self.ms / 1000
        return self.ms


class Slowed(GpuMonitor):
    """Finds the card slowed every second time it looks."""

    def __init__(self) -> None:
        super().__init__("nowhere")
        self.looks = 0

    def undisturbed(self) -> bool:
        self.looks += 1
        return self.looks % 2 == 1


def test_a_short_network_is_replayed_until_a_sample_is_long_enough(monkeypatch) -> None:
    card = Card(0.05, monkeypatch)
    times, quiet, _ = GpuClock(card.elapsed_ms, GpuMonitor("nowhere")).times(95)
    assert card.replays[-6:] == [1] + [20] * 5
    np.testing.assert_allclose(times, [0.05] * 5)
    assert quiet.all()
    assert len(GpuClock(card.elapsed_ms, GpuMonitor("nowhere")).times(3).ms) == 3


def test_a_long_network_is_run_once_a_sample(monkeypatch) -> None:
    card = Card(7.0, monkeypatch)
    GpuClock(card.elapsed_ms, GpuMonitor("nowhere")).times(3)
    assert card.replays[-3:] == [1, 1, 1]


def test_the_card_is_warmed_up_once_and_again_after_it_has_idled(monkeypatch) -> None:
    card, monitor = Card(1.0, monkeypatch), GpuMonitor("nowhere")
    first, second = GpuClock(card.elapsed_ms, monitor), GpuClock(card.elapsed_ms, monitor)
    first.times(1)
    assert card.now >= clock.WARM_UP_MS / 1000
    begun = card.now
    second.times(1)  # another model, straight after
    assert card.now - begun < 0.01
    card.now += 1
    begun = card.now
    first.times(1)
    assert card.now - begun >= clock.WARM_UP_MS / 1000


def test_samples_of_a_slowed_card_are_told_apart(monkeypatch) -> None:
    gpu = GpuClock(Card(1.0, monkeypatch).elapsed_ms, Slowed())
    assert [gpu.times(3).quiet.tolist() for _ in range(3)] == [[True] * 3, [False] * 3, [True] * 3]


def test_bursts_do_not_enter_the_mean_of_quiet_runs() -> None:
    assert mean_of_quiet([1.0, 1.2, 9.0, 1.1, 8.0]) == pytest.approx(1.1)
    assert mean_of_quiet([3.0]) == 3.0


class Core:
    """Scripted: whether it was undisturbed, call by call; then always."""

    def __init__(self, *script: bool) -> None:
        self.script = list(script)
        self.last_ms = 0.1
        self.settled = 0

    def undisturbed(self) -> bool:
        return self.script.pop(0) if self.script else True

    def settle(self) -> None:
        self.settled += 1


class Runs:
    """A model whose runs take `ms`, on a time of its own; nobody takes the core from it."""

    def __init__(self, ms: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms, self.now, self.count = ms, 0.0, 0
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(clock, "preemptions", lambda: 0)

    def __call__(self) -> None:
        self.count += 1
        self.now += self.ms / 1000


def test_runs_beside_a_neighbour_are_repeated(monkeypatch) -> None:
    runs = Runs(1.2, monkeypatch)
    beside = Core(False, False, True)
    times, quiet, _ = CpuClock(runs, beside).times(2)
    assert len(times) == runs.count == 3
    assert quiet.tolist() == [False, False, True]
    assert beside.settled == 3  # at first, and after each of the two that were disturbed


def test_the_fastest_look_at_the_core_tells_its_speed(monkeypatch) -> None:
    looks = iter([0.06, 0.08, 0.09])

    class Wandering(Core):
        def undisturbed(self) -> bool:
            self.last_ms = next(looks)
            return True

    assert CpuClock(Runs(1.2, monkeypatch), Wandering()).times(3).core_ms == 0.06


def test_with_a_neighbour_that_stays_all_runs_are_given_and_none_called_quiet(monkeypatch) -> None:
    runs = Runs(1.2, monkeypatch)
    times, quiet, _ = CpuClock(runs, Core(*[False] * 100)).times(2)
    assert not quiet.any()
    assert len(times) == runs.count == 2 * clock.PATIENCE


def test_long_runs_are_not_repeated_for_a_neighbour(monkeypatch) -> None:
    runs = Runs(80.0, monkeypatch)
    times, quiet, _ = CpuClock(runs, Core(*[False] * 100)).times(3)
    assert not quiet.any()
    assert len(times) == runs.count == 3


def test_after_a_stop_of_an_hour_a_moment_is_pause_enough(monkeypatch) -> None:
    slept, taken = list[float](), itertools.count()
    runs = Runs(3_600_000.0, monkeypatch)
    monkeypatch.setattr(clock, "preemptions", lambda: next(taken))
    monkeypatch.setattr(clock.time, "sleep", slept.append)
    _, quiet, _ = CpuClock(runs, Core()).times(1)
    assert not quiet.any()
    assert slept == [clock.PATIENCE_MS / 1000]


def test_short_runs_share_a_look_at_the_core(monkeypatch) -> None:
    core = Core(*[True] * 100)
    times, *_ = CpuClock(Runs(0.01, monkeypatch), core).times(50)
    assert len(times) >= 50
    assert len(core.script) > 80


class Probed(CoreMonitor):
    """On processors whose probes take as many seconds as is scripted, at first on number 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *seconds: float, movable: bool = True) -> None:
        super().__init__(movable)
        self._shortest = 1.0
        self.seconds, self.here = list(seconds), 0
        monkeypatch.setattr(core, "move_on", self._move_on)

    def _move_on(self) -> bool:
        self.here = (self.here + 1) % len(self.seconds)
        return len(self.seconds) > 1

    def _probe(self) -> float:
        return self.seconds[self.here]

    def sees(self, before: float, after: float) -> bool:
        self.seconds = [before]
        self.settle()
        self.seconds = [after]
        return self.undisturbed()


def test_a_core_is_undisturbed_when_it_was_free_before_and_after(monkeypatch) -> None:
    probed = Probed(monkeypatch)
    assert probed.sees(1.0, 1.05)
    assert probed.last_ms == 1050
    assert not probed.sees(1.0, 1.5)
    assert not probed.sees(1.5, 1.0)
    assert probed.sees(1.0, 1.0)


def test_a_core_that_has_become_slower_for_good_is_believed_in_the_end(monkeypatch) -> None:
    probed = Probed(monkeypatch)
    looks = 0
    while not probed.sees(1.3, 1.3):
        looks += 1
    assert 3_000 < looks < 10_000


@given(st.lists(st.floats(1, 10), min_size=1, max_size=50))
def test_the_shortest_probe_ever_seen_is_believed_whatever_came_between(seconds: list[float]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        probed = Probed(monkeypatch)
        probed._shortest = max(seconds)
        for one in seconds:
            probed.sees(one, one)
        assert probed.sees(min(seconds), min(seconds))


def test_beside_a_neighbour_the_next_free_processor_is_taken(monkeypatch) -> None:
    probed = Probed(monkeypatch, 1.5, 1.4, 1.0, 1.0)
    probed.settle()
    assert probed.here == 2
    probed.settle()
    assert probed.here == 2
    assert probed.undisturbed()


def test_where_none_is_free_a_few_are_tried(monkeypatch) -> None:
    probed = Probed(monkeypatch, *[1.5] * 100)
    probed.settle()
    assert probed.here == MOVES - 1
    assert not probed.undisturbed()


def test_several_threads_are_left_where_they_are(monkeypatch) -> None:
    probed = Probed(monkeypatch, 1.5, 1.0, movable=False)
    probed.settle()
    assert probed.here == 0


def test_the_first_look_is_at_several_processors(monkeypatch) -> None:
    monkeypatch.setattr(core, "FIRST_LOOK_S", 0.001)
    probed = Probed(monkeypatch, 1.5, 1.0, 1.5)
    probed._shortest = np.inf
    probed.settle()
    assert probed.here == 1
    assert probed.undisturbed()


def test_the_probe_computes_between_two_looks_at_the_clock(monkeypatch) -> None:
    monitor, clock_looks = CoreMonitor(), itertools.count()
    monkeypatch.setattr(core.time, "perf_counter", lambda: float(next(clock_looks)))
    assert monitor._probe() == 1
    np.testing.assert_array_equal(monitor._product.ravel(), np.arange(1, SIZE**2 + 1))
