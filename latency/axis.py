"""The one law of widths: an axis is fixed, or `per_channel` times one gene's width, and pruning keeps its first entries."""

from __future__ import annotations

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
