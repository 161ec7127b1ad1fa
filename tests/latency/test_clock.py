"""The clocks of devices, on durations that are scripted."""

import numpy as np
import pytest

from latency.devices import clock
from latency.devices.clock import GpuClock, mean_of_quiet
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
    """Finds the card slowed in every second sample."""

    def __init__(self) -> None:
        super().__init__("nowhere")
        self.samples = 0

    def undisturbed(self) -> bool:
        self.samples += 1
        return self.samples % 2 == 1


def test_a_short_network_is_replayed_until_a_sample_is_long_enough(monkeypatch) -> None:
    card = Card(0.05, monkeypatch)
    times, quiet = GpuClock(card.elapsed_ms, GpuMonitor("nowhere")).times_ms(5)
    assert card.replays[-5:] == [20] * 5
    np.testing.assert_allclose(times, 0.05)
    assert quiet.all()


def test_a_long_network_is_run_once_a_sample(monkeypatch) -> None:
    card = Card(7.0, monkeypatch)
    GpuClock(card.elapsed_ms, GpuMonitor("nowhere")).times_ms(3)
    assert card.replays[-3:] == [1, 1, 1]


def test_the_card_is_warmed_up_once_and_again_after_it_has_idled(monkeypatch) -> None:
    card, monitor = Card(1.0, monkeypatch), GpuMonitor("nowhere")
    first, second = GpuClock(card.elapsed_ms, monitor), GpuClock(card.elapsed_ms, monitor)
    first.times_ms(1)
    assert card.now >= clock.WARM_UP_MS / 1000
    begun = card.now
    second.times_ms(1)  # another model, straight after
    assert card.now - begun < 0.01
    card.now += 1
    begun = card.now
    first.times_ms(1)
    assert card.now - begun >= clock.WARM_UP_MS / 1000


def test_samples_of_a_slowed_card_are_told_apart(monkeypatch) -> None:
    _, quiet = GpuClock(Card(1.0, monkeypatch).elapsed_ms, Slowed()).times_ms(4)
    assert quiet.tolist() == [True, False, True, False]


def test_bursts_do_not_enter_the_mean_of_quiet_runs() -> None:
    assert mean_of_quiet([1.0, 1.2, 9.0, 1.1, 8.0]) == pytest.approx(1.1)
    assert mean_of_quiet([3.0]) == 3.0
