"""The one law of widths: an axis is fixed, or `per_channel` times one gene's width, and pruning keeps its first entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Axis:
    """One tensor axis: `size` entries unpruned; with a gene, `per_channel` entries for each channel kept."""

    size: int
    gene: int | None = None
    per_channel: int = 1

    def length(self, widths: Any) -> Any:
        """Entries kept under `widths` (int[..., L]): an int or an int array [...]."""
        return self.size if self.gene is None else widths[..., self.gene] * self.per_channel


def kept(axes: Sequence[Axis], widths: Any) -> tuple[slice, ...]:
    """Index of the entries that a tensor with these axes keeps under `widths` (int64[L])."""
    return tuple(slice(0, int(axis.length(widths))) for axis in axes)
