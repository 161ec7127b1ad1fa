"""How a model is timed: the same rounds on every device, and the verdict whether they can be trusted.

Noise only adds (other tenants of the machine, a neighbour on the same physical core), so means and medians mislead. A
model is timed in short rounds, each of which gives its fastest run; the mean of the three fastest rounds is the latency, and
all rounds are kept. Where a neighbour slows five runs of six by a quarter, 60 runs taken so scatter by 1.3 % from one time to
the next, and a lower quartile of rounds' medians by 4 % (MobileNetV1, 224×224). The rounds of one model follow each other:
taking turns with other models after every few runs, each finds cold caches, which costs up to 7 % and scatters by 2 %
instead of 0.4 % (MobileNetV2, 224×224, one core). They come in two halves with all other models between, since other
tenants slow a machine for a second at a time; who is still in doubt is visited again after the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from latency.measuring.device import LoadedModel
from latency.measuring.measurement import Protocol

IN_VAIN_S = 2.0
"""Models in doubt are not visited again once all of them together took this long and none of their runs was undisturbed: this
neighbour stays."""


@dataclass(frozen=True)
class Rounds:
    """The fastest run of each round and of the fixed computation in it, float64[R] each, and which rounds had runs that
    nothing was seen to disturb."""

    ms: np.ndarray
    core_ms: np.ndarray
    quiet: np.ndarray

    def plus(self, other: Rounds) -> Rounds:
        return Rounds(*(np.append(mine, its) for mine, its in zip(astuple(self), astuple(other), strict=True)))

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


def timed(loaded: Sequence[LoadedModel], protocol: Protocol, max_spread: float) -> list[Rounds]:
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


def _visited(loaded: LoadedModel, protocol: Protocol) -> Rounds:
    """Warm up, see meanwhile how many rounds of how many runs to make, and make half of them in one go."""
    first = loaded.times(protocol.min_runs).ms
    once = float(np.median(first))
    loaded.run(max(0, math.ceil((protocol.warmup_ms - first.sum()) / once)))
    runs = max(protocol.min_runs, math.ceil(protocol.round_ms / once))
    affordable = math.ceil(protocol.timed_ms / (runs * once))
    count = math.ceil(min(protocol.rounds, max(protocol.fewest_rounds, affordable)) / 2)
    timed = [loaded.times(runs) for _ in range(count)]
    columns = zip(*((one.ms.min(), one.core_ms, one.quiet.any()) for one in timed), strict=True)
    return Rounds(*map(np.array, columns))
