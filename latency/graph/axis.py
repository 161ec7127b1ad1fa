"""The one law of widths: an axis is fixed, or `per_channel` times one gene's width, or several such one after another.

Pruning keeps the first entries of every part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Axis:
    """One tensor axis: `size` entries unpruned; with a gene, `per_channel` entries for each channel kept."""

    size: int
    gene: int | None = None
    per_channel: int = 1

    @property
    def parts(self) -> tuple[Axis, ...]:
        """Itself: it is a single stretch."""
        return (self,)

    @property
    def genes(self) -> frozenset[int]:
        """The genes its length depends on."""
        return frozenset() if self.gene is None else frozenset({self.gene})

    def length(self, widths: Any) -> Any:
        """Entries kept under `widths` (int[..., L]): an int or an int array [...]."""
        return self.size if self.gene is None else widths[..., self.gene] * self.per_channel

    def index(self, widths: np.ndarray) -> slice | np.ndarray:
        """Which entries are kept under `widths` (int64[L])."""
        return slice(0, int(self.length(widths)))

    def repeated(self, times: int) -> Axis:
        """The axis after flattening: `times` entries where one was."""
        return Axis(self.size * times, self.gene, self.per_channel * times)

    def merged(self, count: int) -> Axis:
        """One entry where `count` were, all of one channel or of none that a gene prunes."""
        return Axis(self.size // count, self.gene, max(1, self.per_channel // count))


@dataclass(frozen=True)
class Concatenation:
    """The axis along which tensors were concatenated; behaves like an `Axis`."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def genes(self) -> frozenset[int]:
        return frozenset().union(*(part.genes for part in self.parts))

    def length(self, widths: Any) -> Any:
        return sum(part.length(widths) for part in self.parts)

    def index(self, widths: np.ndarray) -> slice | np.ndarray:
        return np.concatenate([np.arange(start, start + part.length(widths)) for start, part in stretches(self)])

    def repeated(self, times: int) -> Concatenation:
        return Concatenation(tuple(part.repeated(times) for part in self.parts))

    def merged(self, count: int) -> Concatenation:
        return Concatenation(tuple(part.merged(count) for part in self.parts))


AnyAxis = Axis | Concatenation

Kept = tuple[slice | np.ndarray, ...]
"""What is kept of a tensor, axis by axis."""


def concatenated(axes: Sequence[AnyAxis]) -> AnyAxis:
    """One axis of all parts of `axes`."""
    parts = tuple(part for axis in axes for part in axis.parts)
    return parts[0] if len(parts) == 1 else Concatenation(parts)


def stretches(axis: AnyAxis) -> Iterator[tuple[int, Axis]]:
    """Each part of `axis` with the place where it begins."""
    start = 0
    for part in axis.parts:
        yield start, part
        start += part.size


def reordered(axis: AnyAxis, gene: int, order: np.ndarray) -> np.ndarray:
    """int64[size]: the entries of `axis` once the channels of `gene` come in another order (int64[max_width])."""
    entries = np.arange(axis.size)
    for start, part in stretches(axis):
        if part.gene == gene:
            channels = entries[start : start + part.size].reshape(-1, part.per_channel)
            entries[start : start + part.size] = channels[order].ravel()
    return entries


def equal_part(axis: AnyAxis, count: int) -> AnyAxis:
    """The first of so many equal parts: some entries of each channel, where there is a single stretch and channels have so
    many, else some channels; then between two of its parts nothing is cut."""
    if len(axis.parts) == 1 and axis.parts[0].per_channel % count == 0:
        (whole,) = axis.parts
        return Axis(whole.size // count, whole.gene, whole.per_channel // count)
    ends = np.cumsum([part.size for part in axis.parts])
    return concatenated(axis.parts[: int(np.searchsorted(ends, axis.size // count)) + 1])


def kept(axes: Sequence[AnyAxis], widths: np.ndarray) -> Kept:
    """Which entries along each of its axes a tensor keeps under `widths` (int64[L])."""
    return tuple(axis.index(widths) for axis in axes)


def mesh(kept: Kept) -> Kept:
    """`kept` as one index: what is kept along every axis at once."""
    lists = [place for place, one in enumerate(kept) if isinstance(one, np.ndarray)]
    if len(lists) < 2:
        return kept
    opened: dict[int, np.ndarray] = dict(zip(lists, np.ix_(*(kept[place] for place in lists)), strict=True))
    return tuple(opened.get(place, one) for place, one in enumerate(kept))
