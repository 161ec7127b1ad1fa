"""Channel variables: which channels of a network are the same ones, and which may be pruned (union-find)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple


class Flow(NamedTuple):
    """One stretch of a tensor's channels: `per_channel` entries for each channel of variable `variable`."""

    variable: int
    per_channel: int = 1


Flows = tuple[Flow, ...]


class Channels(NamedTuple):
    """The channels of a tensor: stretch after stretch along one of its axes."""

    flows: Flows
    axis: int = 1


@dataclass
class Variables:
    """Union-find over channel variables; a set is fixed when any member is, and a multiple of all its members'."""

    parent: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    maker: list[str] = field(default_factory=list)
    fixed: list[bool] = field(default_factory=list)
    multiple: list[int] = field(default_factory=list)

    def new(self, size: int, maker: str, fixed: bool = False) -> int:
        self.parent.append(len(self.parent))
        self.size.append(size)
        self.maker.append(maker)
        self.fixed.append(fixed)
        self.multiple.append(1)
        return len(self.parent) - 1

    def entries(self, flow: Flow) -> int:
        """Length of the stretch at full width."""
        return self.size[flow.variable] * flow.per_channel

    def pin(self, flows: Flows) -> None:
        """Never prune these."""
        for flow in flows:
            self.fixed[self.root(flow.variable)] = True

    def restrict(self, flows: Flows, entries: int) -> None:
        """Let every stretch shrink only by whole groups of `entries`."""
        for flow in flows:
            root = self.root(flow.variable)
            channels = entries // math.gcd(entries, flow.per_channel)
            self.multiple[root] = math.lcm(self.multiple[root], channels)

    def root(self, variable: int) -> int:
        while self.parent[variable] != variable:
            variable = self.parent[variable]
        return variable

    def join(self, a: int, b: int) -> int:
        """The set's name is its earliest member, so genes keep the order of the network."""
        low, high = sorted((self.root(a), self.root(b)))
        self.parent[high] = low
        self.fixed[low] = self.fixed[low] or self.fixed[high]
        self.multiple[low] = math.lcm(self.multiple[low], self.multiple[high])
        return low
