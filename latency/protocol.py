"""How a model is timed: the same rounds on every device, and the verdict whether they can be trusted.

Noise only adds (other tenants of the machine, a neighbour on the same physical core), so means and medians mislead. A
model is timed in short rounds, each of which gives its fastest run; the mean of the three fastest rounds is the latency, and
all rounds are kept. Where a neighbour slows five runs of six by a quarter, 60 runs taken so scatter by 1.3 % from one time to
the next, and a lower quartile of rounds' medians by 4 % (MobileNetV1, 224×224). The rounds of one model follow each other:
taking turns with other models after every few runs, each finds cold caches, which costs up to 7 % and scatters by 2 %
instead of 0.4 % (MobileNetV2, 224×224, one core). They come in two halves with all other models between, since other
tenants slow a machine for a second at a time; who is still in doubt is visited again after the others. Kernel times come
from a profiler that slows what it watches: they are used as shares of the unprofiled end-to-end time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import onnx
import pandas as pd

from latency.devices.base import Events, LoadedModel, LocalDevice
from latency.errors import MeasurementError
from latency.fingerprint import Conditions, conditions_since, cpu_times
from latency.kernels import KERNEL_FIELDS, Kernel, PlacedKernel, find_kernels
from latency.measurement import Measurement
from latency.physics import Kernels


@dataclass(frozen=True)
class Protocol:
    """How long and how often to measure; the defaults suit networks of 0.1 to 100 ms."""

    rounds: int = 8
    fewest_rounds: int = 4
    timed_ms: float = 80.0  # what takes longer than this in all its rounds gets fewer of them
    round_ms: float = 8.0  # at least this long, and at least `min_runs` runs
    min_runs: int = 3
    warmup_ms: float = 10.0
    profiled_runs: int = 8
    fastest: int = 3  # rounds whose mean is the latency
    revisits: int = 6  # further halves for a model in doubt


MANY_STRUCTURES = Protocol(rounds=4, profiled_runs=5)
"""Where a thousand structures are measured, each may be noisier."""

IN_VAIN_S = 2.0
"""Models in doubt are not visited again once all of them together took this long and none of their runs was undisturbed: this
neighbour stays."""

MACS_A_VALUE = 16
"""Multiply-adds that cost as much as moving one value, in what a runtime fused beyond our kernels. End-to-end times correct
what this gets wrong."""


def measure(device: LocalDevice, models: Sequence[bytes], protocol: Protocol | None = None) -> list[Measurement]:
    """Time `models` on `device`, one after another, in one session.

    Raises:
        MeasurementError: when the device cannot load or run one of them.
    """
    protocol = protocol or Protocol()
    before = cpu_times()
    loaded: list[LoadedModel] = []
    try:
        for model in models:
            loaded.append(device.load(model))
        kernels = [_profiled(one, model, protocol) for one, model in zip(loaded, models, strict=True)]
        rounds = _timed(loaded, protocol, device.max_spread)
    finally:
        for one in loaded:
            one.close()
    conditions = conditions_since(before, device.observed())
    return [
        _verdict(frame, times, protocol, device.max_spread, conditions) for frame, times in zip(kernels, rounds, strict=True)
    ]


def by_the_wall_ms(device: LocalDevice, model: bytes, blocks: int = 20, block_ms: float = 100.0) -> tuple[float, float]:
    """The same model by two clocks, in turns: the device's own, and the wall's over many runs in a row.

    Returns:
        Milliseconds of a run by either: lower quartiles over `blocks` blocks.
    """
    loaded = device.load(model)
    try:
        loaded.profile(1)
        runs = max(3, round(block_ms / float(np.median(loaded.times(3).ms))))
        pairs = [(float(np.median(loaded.times(runs).ms)), _wall_ms(loaded, runs)) for _ in range(blocks)]
    finally:
        loaded.close()
    own, wall = np.quantile(np.array(pairs), 0.25, axis=0)
    return float(own), float(wall)


def _wall_ms(loaded: LoadedModel, runs: int) -> float:
    begun = time.perf_counter()
    loaded.run(runs)
    return (time.perf_counter() - begun) * 1000 / runs


@dataclass(frozen=True)
class _Rounds:
    """The fastest run of each round and of the fixed computation in it, float64[R] each, and which rounds had runs that
    nothing was seen to disturb."""

    ms: np.ndarray
    core_ms: np.ndarray
    quiet: np.ndarray

    def plus(self, other: _Rounds) -> _Rounds:
        return _Rounds(*(np.append(mine, its) for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def fastest(self, protocol: Protocol) -> np.ndarray:
        """int64: the rounds whose mean is the latency."""
        return np.argsort(self.ms)[: protocol.fastest]

    def latency_ms(self, protocol: Protocol) -> float:
        return float(self.ms[self.fastest(protocol)].mean())

    def stable(self, protocol: Protocol, max_spread: float) -> bool:
        """Whether enough rounds lie within `max_spread` of the latency to believe it, and enough were quiet: those that a
        neighbour slowed all along agree, too."""
        agreeing = self.ms <= (1 + max_spread) * self.latency_ms(protocol)
        return bool(min(agreeing.sum(), self.quiet.sum()) >= min(protocol.fewest_rounds, len(self.ms)))


def _timed(loaded: Sequence[LoadedModel], protocol: Protocol, max_spread: float) -> list[_Rounds]:
    """Rounds of every model, half of them after all other models had their first half; then again those still unstable."""
    rounds = [_visited(one, protocol) for one in loaded]
    rounds = [first.plus(_visited(one, protocol)) for first, one in zip(rounds, loaded, strict=True)]
    for _ in range(protocol.revisits):
        begun = time.monotonic()
        doubtful = [index for index, one in enumerate(rounds) if not one.stable(protocol, max_spread)]
        again = {index: _visited(loaded[index], protocol) for index in doubtful}
        rounds = [one.plus(again[index]) if index in again else one for index, one in enumerate(rounds)]
        if time.monotonic() - begun > IN_VAIN_S and not any(one.quiet.any() for one in again.values()):
            break
    return rounds


def _visited(loaded: LoadedModel, protocol: Protocol) -> _Rounds:
    """Warm up, see how many rounds of how many runs to make, and make half of them in one go."""
    once = float(np.median(loaded.times(protocol.min_runs).ms))
    loaded.run(math.ceil(protocol.warmup_ms / once))
    runs = max(protocol.min_runs, math.ceil(protocol.round_ms / once))
    affordable = math.ceil(protocol.timed_ms / (runs * once))
    count = math.ceil(min(protocol.rounds, max(protocol.fewest_rounds, affordable)) / 2)
    timed = [loaded.times(runs) for _ in range(count)]
    columns = zip(*((one.ms.min(), one.core_ms, one.quiet.any()) for one in timed), strict=True)
    return _Rounds(*map(np.array, columns))


def _verdict(
    kernels: pd.DataFrame, rounds: _Rounds, protocol: Protocol, max_spread: float, conditions: Conditions
) -> Measurement:
    latency_ms = rounds.latency_ms(protocol)
    core_ms = float(rounds.core_ms[rounds.fastest(protocol)].mean())
    scaled = kernels.assign(ms=kernels["ms"] * (latency_ms / kernels["ms"].sum()))
    stable = rounds.stable(protocol, max_spread)
    return Measurement(latency_ms, core_ms, scaled, rounds.ms, rounds.core_ms, stable, conditions)


def _profiled(loaded: LoadedModel, model: bytes, protocol: Protocol) -> pd.DataFrame:
    """Kernels of `model` with the profiler's milliseconds."""
    placed = find_kernels(onnx.load_from_string(model))
    milliseconds = _attributed(placed, loaded.profile(protocol.profiled_runs))
    frame = pd.DataFrame([one.kernel for one in placed], columns=list(KERNEL_FIELDS))
    return frame.assign(ms=milliseconds)


def _attributed(placed: Sequence[PlacedKernel], events: Events) -> np.ndarray:
    """Sum profiler events into kernels by name.

    An event without names converts the layout of what the next kernel reads. Between two kernels that know blocked layouts,
    widths decide: the producer's own channels how it left it, its output's channels how it is wanted; so it belongs to the
    producer. Otherwise it belongs to the one that does not know them. Names that the model does not have come from an
    operation the runtime expanded (HardSwish, say): they belong to the kernel just run. What runs several kernels as one is
    shared out among them by their work.
    """
    producer = {one.output: index for index, one in enumerate(placed)}
    owner = {name: index for index, one in enumerate(placed) for name in one.names}
    milliseconds = np.zeros(len(placed))
    waiting = 0.0
    last: list[int] = []
    for names, ms in events:
        if not names:
            waiting += ms
            continue
        last = sorted({owner[name] for name in names if name in owner}) or last
        if last:
            milliseconds[last] += ms * _shares([placed[index].kernel for index in last])
            first = last[0]
            milliseconds[producer.get(placed[first].input, first) if placed[first].blocked else first] += waiting
            waiting = 0.0
    if not last:
        raise MeasurementError("the device's profiler reported no kernel of this model.")
    milliseconds[last[-1]] += waiting
    return milliseconds


def _shares(kernels: Sequence[Kernel]) -> np.ndarray:
    """Share of each kernel in their work: values read and written, and multiply-adds at `MACS_A_VALUE` of them."""
    if len(kernels) == 1:
        return np.ones(1)
    terms = Kernels.of(pd.DataFrame(kernels, columns=list(KERNEL_FIELDS))).terms()
    work = terms[:, 1] / MACS_A_VALUE + terms[:, 2] + terms[:, 3]
    return work / work.sum()
