"""Channel variables: which channels of a network are the same ones, and which may be pruned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Flow(NamedTuple):
    """One stretch of a tensor's channels: `per_channel` entries for each channel of variable `variable`."""

    variable: int
    per_channel: int = 1


Flows = tuple[Flow, ...]


def repeated(flows: Flows, times: int) -> Flows:
    """So many entries where one was."""
    return tuple(Flow(flow.variable, flow.per_channel * times) for flow in flows)


class Channels(NamedTuple):
    """The channels of a tensor: stretch after stretch along one of its axes."""

    flows: Flows
    axis: int = 1


@dataclass
class Variable:
    """So many channels that layer `maker` makes; `multiple`: only whole groups of so many can go.

    `meaning` are stretches that stand for it, one after another, once it is joined to another, cut or grouped. `place` orders
    variables as the network makes them; what is `uncut` is not to be cut.
    """

    size: int
    maker: str
    place: tuple[int, ...]
    fixed: bool = False
    multiple: int = 1
    uncut: bool = False
    meaning: Flows = ()


class Variables:
    """All channel variables of a network. They are joined (union-find) where channels must agree, and cut where only a part
    of one must; a set is fixed when any member is, and a multiple of all its members'."""

    def __init__(self) -> None:
        self._all: list[Variable] = []

    def new(self, size: int, maker: str, fixed: bool = False) -> Flow:
        """So many channels of their own, one entry for each."""
        self._all.append(Variable(size, maker, (len(self._all),), fixed))
        return Flow(len(self._all) - 1)

    def free(self) -> dict[int, Variable]:
        """What may be pruned, in the order of the network."""
        free = {number: one for number, one in enumerate(self._all) if not one.fixed and not one.meaning}
        return dict(sorted(free.items(), key=lambda item: item[1].place))

    def roots(self, flows: Iterable[Flow]) -> Flows:
        """The same stretches in variables that stand for themselves."""
        return tuple(root for flow in flows for root in self._roots(flow))

    def entries(self, flow: Flow) -> int:
        """Length of the stretch at full width."""
        return self._all[flow.variable].size * flow.per_channel

    def all_fixed(self, flows: Flows) -> bool:
        """Whether none of these may be pruned, as known by now."""
        return all(self._all[root].fixed for root, _ in self.roots(flows))

    def pin(self, flows: Flows) -> None:
        """Never prune these."""
        for root, _ in self.roots(flows):
            self._all[root].fixed = True

    def keep_uncut(self, flows: Flows) -> None:
        """Rather fix these than cut them."""
        for root, _ in self.roots(flows):
            self._all[root].uncut = True

    def restrict(self, flows: Flows, entries: int) -> None:
        """Let every stretch shrink only by whole groups of `entries`."""
        for root, per_channel in self.roots(flows):
            channels = entries // math.gcd(entries, per_channel)
            self._all[root].multiple = math.lcm(self._all[root].multiple, channels)

    def join(self, one: Flows, other: Flows) -> None:
        """Make them the same, entry by entry; the longer of two stretches is cut. From where channels have different numbers
        of entries on, all are kept."""
        one, other = self.roots(one), self.roots(other)
        while one and other:
            (a, per_channel), (b, other_per_channel) = one[0], other[0]
            shorter = min(self._all[a].size, self._all[b].size)
            if per_channel != other_per_channel:
                self.pin(one + other)
                return
            if self._all[a].size != self._all[b].size:
                self._cut(max(a, b, key=lambda root: self._all[root].size), shorter)
            else:
                self._unite(a, b)
                one, other = one[1:], other[1:]
            one, other = self.roots(one), self.roots(other)

    def equal_parts(self, flows: Flows, count: int) -> Flows | None:
        """One of so many equal parts, all of which become the same; None where channels would have to be cut through."""
        length = sum(map(self.entries, self.roots(flows))) // count
        parts = []
        for _ in range(count):
            first = self._first(flows, length)
            if first is None:
                return None
            parts.append(first)
            flows = self.roots(flows)[len(first) :]
        for part in parts[1:]:
            self.join(parts[0], part)
        return self.roots(parts[0])

    def dealt(self, flows: Flows, count: int) -> Flows | None:
        """What each of `count` parts gets where every channel has a multiple of so many entries, as after a channel shuffle:
        its share of them. None where it is not so."""
        roots = self.roots(flows)
        if len(roots) != 1 or roots[0].per_channel % count:
            return None
        self.keep_uncut(roots)
        return (Flow(roots[0].variable, roots[0].per_channel // count),)

    def grouped(self, flows: Flows, count: int) -> Flows | None:
        """The channels of which each is `count` consecutive entries, that go together from now on. None where channels would
        have to be cut through."""
        roots = self.roots(flows)
        sizes = [max(1, count // flow.per_channel) for flow in roots]  # channels that become one
        if any(
            self._all[flow.variable].size % size or flow.per_channel * size % count
            for flow, size in zip(roots, sizes, strict=True)
        ):
            return None
        for flow, size in zip(roots, sizes, strict=True):
            self._group(flow.variable, size)
        return tuple(Flow(flow.variable, flow.per_channel // count) for flow in self.roots(roots))

    def _first(self, flows: Flows, length: int) -> Flows | None:
        """The stretches that the first `length` entries are, after cutting; None where that goes through a channel."""
        first: Flows = ()
        for flow in self.roots(flows):
            missing = length - sum(map(self.entries, first))
            if not missing:
                break
            if self.entries(flow) > missing:
                if missing % flow.per_channel:
                    return None
                self._cut(flow.variable, missing // flow.per_channel)
                return self._first(flows, length)  # what is cut may have come before, too
            first += (flow,)
        return first

    def _roots(self, flow: Flow) -> Flows:
        meaning = repeated(self._all[flow.variable].meaning, flow.per_channel)
        return tuple(root for one in meaning for root in self._roots(one)) if meaning else (flow,)

    def _unite(self, a: int, b: int) -> None:
        """The set's name is its earliest member, so genes keep the order of the network."""
        if a == b:
            return
        low, high = sorted((a, b), key=lambda root: self._all[root].place)
        first, second = self._all[low], self._all[high]
        first.fixed = first.fixed or second.fixed
        first.multiple = math.lcm(first.multiple, second.multiple)
        first.uncut = first.uncut or second.uncut
        second.meaning = (Flow(low),)

    def _cut(self, root: int, size: int) -> None:
        """The first `size` channels and the rest become variables of their own; fixed where that goes through a group,
        or must not be."""
        whole = self._all[root]
        fixed = whole.fixed or whole.uncut or size % whole.multiple > 0
        for start, length in ((0, size), (size, whole.size - size)):
            maker = f"{whole.maker}[{start}:]" if start else whole.maker
            self._all.append(Variable(length, maker, (*whole.place, start), fixed, whole.multiple))
        whole.meaning = (Flow(len(self._all) - 2), Flow(len(self._all) - 1))

    def _group(self, root: int, size: int) -> None:
        """Each `size` channels become one of a variable of its own."""
        single = self._all[root]
        if size == 1 or single.meaning:
            return
        multiple = single.multiple // math.gcd(single.multiple, size)
        self._all.append(Variable(single.size // size, single.maker, single.place, single.fixed, multiple, single.uncut))
        single.meaning = (Flow(len(self._all) - 1, size),)
