"""How fast a CPU core computes, and whether at full speed, as far as this process can tell."""

from __future__ import annotations

import time

import numpy as np

from latency.devices.processors import move_on

SIZE, PRODUCTS, SUMS = 48, 12, 7
"""Of the fixed computation: so many products of matrices of this size, then so many times the sum of all entries, one after
the other; a tenth of a millisecond, in the first-level cache. A neighbour on the same physical core makes products, which
keep all its multipliers busy, take 2.1 times as long, sums, which wait for each other, 1.4 times, and networks 1.3 to 1.6
times; with the core's clock all three change alike. Ten networks (0.2 to 20 ms), measured again and again on a Xeon whose
neighbours came and went, scattered by 14.1 %, relative to products by 7.3 %, to sums by 5.1 %, to a mixture of both, a third
products, by 4.2 % (a script)."""

FULL_SPEED = 1.1
"""A probe that takes up to so many times the shortest found the core free. With a neighbour it takes 1.4 times that (median, on
that Xeon)."""

FORGOTTEN = 3e-5
"""By how much each probe lengthens the shortest that is remembered: a processor that has become slower for good, a hot one
say, is believed after half a minute. The neighbours seen so far paused within seconds."""

FIRST_LOOK_S = 0.2

MOVES = 4
"""Processors that are tried, at most, to find one free."""


class CoreMonitor:
    """Tells when something else slows this core, and goes to another.

    Other tenants' work on the same physical core (hyper-threading) slows a computation by a quarter for milliseconds or
    seconds, and neither the system's counters nor the computation's own rounds show it: they may all be slowed. A fixed
    computation beside it does. Of several cores only the one that asks is seen.

    Args:
        movable: whether all that is timed runs in the thread that asks, and may be taken to another processor with it.

    Attributes:
        last_ms: what the fixed computation took when the core was last looked at. Processes differ in it by 1 %.
    """

    def __init__(self, movable: bool = True) -> None:
        self._movable = movable
        self._matrix, self._product = np.ones((2, SIZE, SIZE), np.float32)
        self._entries, self._sums = self._matrix.ravel(), self._product.ravel()
        self._shortest = np.inf
        self._free = False
        self.last_ms = np.nan

    def settle(self) -> None:
        """See whether the core is free; where others use it, go to one that is, if there is one."""
        if np.isinf(self._shortest):
            self._look()
        tries = 1
        while not self._look_is_free() and self._movable and tries < MOVES and move_on():
            tries += 1

    def undisturbed(self) -> bool:
        """Whether the core was free when it was last looked at and is free now."""
        return self._free and self._look_is_free()

    def _look(self) -> None:
        for _ in range(MOVES):
            end = time.perf_counter() + FIRST_LOOK_S / MOVES
            while time.perf_counter() < end:
                self._look_is_free()
            if self._movable:
                move_on()

    def _look_is_free(self) -> bool:
        self._compute(1, 1)  # what ran before has left the caches to itself
        took = self._probe()
        self.last_ms = 1000 * took
        self._shortest = min(took, self._shortest * (1 + FORGOTTEN))
        self._free = took <= FULL_SPEED * self._shortest
        return self._free

    def _probe(self) -> float:
        """Seconds of the fixed computation."""
        begun = time.perf_counter()
        self._compute(PRODUCTS, SUMS)
        return time.perf_counter() - begun

    def _compute(self, products: int, sums: int) -> None:
        for _ in range(products):
            np.matmul(self._matrix, self._matrix, out=self._product)
        for _ in range(sums):
            np.cumsum(self._entries, out=self._sums)
