"""How fast a CPU core computes, and whether at full speed, as far as this process can tell."""

from __future__ import annotations

import time

import numpy as np

SIZE, PRODUCTS = 48, 20
"""Of the probe: so many products of matrices of this size, a tenth of a millisecond from the first-level cache."""

FULL_SPEED = 1.1
"""A probe that takes up to so many times the shortest found the core free. With a neighbour it takes 1.5 times that."""

FORGOTTEN = 3e-5
"""By how much each probe lengthens the shortest that is remembered: a processor that has become slower for good, a hot one
say, is believed after half a minute. The neighbours seen so far paused within seconds."""

FIRST_LOOK_S = 0.2


class CoreMonitor:
    """Tells when something else slows this core.

    Other tenants' work on the same physical core (hyper-threading) slows a computation by a quarter for milliseconds or
    seconds, and neither the system's counters nor the computation's own rounds show it: they may all be slowed. A fixed
    computation beside it does. Of several cores only the one that asks is seen.

    Attributes:
        last_ms: what the fixed computation took when the core was last looked at. Processes differ in it by 1 %.
    """

    def __init__(self) -> None:
        self._matrix, self._product = np.ones((2, SIZE, SIZE), np.float32)
        self._shortest = np.inf
        self._free = False
        self.last_ms = np.nan

    def undisturbed(self) -> bool:
        """Whether the core was free at the last call and is free now."""
        if np.isinf(self._shortest):
            self._look()
        before, self._free = self._free, self._is_free()
        return before and self._free

    def _look(self) -> None:
        end = time.perf_counter() + FIRST_LOOK_S
        while time.perf_counter() < end:
            self._is_free()

    def _is_free(self) -> bool:
        self._probe()  # what ran before has left the caches to itself
        took = self._probe()
        self.last_ms = 1000 * took
        self._shortest = min(took, self._shortest * (1 + FORGOTTEN))
        return took <= FULL_SPEED * self._shortest

    def _probe(self) -> float:
        """Seconds of the fixed computation."""
        begun = time.perf_counter()
        for _ in range(PRODUCTS):
            np.matmul(self._matrix, self._matrix, out=self._product)
        return time.perf_counter() - begun
