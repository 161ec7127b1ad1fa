"""Budgets as people write them: 15ms, 60%, 150M, 0.95G..1.05G."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from latency.errors import MillipruneError

UNITS = {
    "latency": {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3},
    "macs": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9},
    "params": {"": 1.0, "K": 1e3, "M": 1e6},
}
EXAMPLES = {"latency": "15ms or 60%", "macs": "150M, 0.95G..1.05G or 60%", "params": "2M or 60%"}


class BudgetError(MillipruneError):
    """A budget that cannot be read, or that nothing meets."""


@dataclass(frozen=True)
class Budget:
    """`low` ≤ cost ≤ `high`: in milliseconds, MACs or parameters, or as shares of the unpruned network."""

    quantity: str
    low: float
    high: float
    relative: bool = False

    def resolved(self, unpruned: float) -> Budget:
        """In absolute numbers, given what the unpruned network costs."""
        factor = unpruned if self.relative else 1.0
        return Budget(self.quantity, self.low * factor, self.high * factor)


def parse_budget(text: str, quantity: str) -> Budget:
    """Read a budget for "latency", "macs" or "params"; `a..b` is a range, one number an upper bound.

    Raises:
        BudgetError: naming what was given and showing an example.
    """
    parts = text.strip().split("..")
    if len(parts) > 2:
        raise _unreadable(text, quantity)
    amounts = [_amount(part, text, quantity) for part in parts]
    if len({relative for _, relative in amounts}) > 1:
        raise BudgetError(f"--{quantity} {text} mixes a percentage with an absolute number; use one of them on both ends.")
    low, high = (amounts[0][0] if len(amounts) == 2 else 0.0), amounts[-1][0]
    if low > high:
        raise BudgetError(f"--{quantity} {text} given; the first number of a range must be the smaller one.")
    return Budget(quantity, low, high, amounts[-1][1])


def check_shared(budgets: Mapping[str, Budget], purpose: str) -> None:
    """Raises BudgetError where the budgets, by quantity, would not mean the same to several processes."""
    if "latency" in budgets and budgets["latency"].relative:
        raise BudgetError(
            f"{purpose} given a latency in per cent, which every process takes of its own measurement; expected --latency in "
            "milliseconds, for example 15ms."
        )


def _amount(part: str, text: str, quantity: str) -> tuple[float, bool]:
    match = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf)\s*(%|[a-zA-Zµ]*)\s*", part)
    if match is None:
        raise _unreadable(text, quantity)
    number, unit = float(match.group(1)), match.group(2)
    if unit != "%" and unit not in UNITS[quantity]:
        raise _unreadable(text, quantity)
    if not math.isfinite(number) or number <= 0:
        raise BudgetError(f"--{quantity} {text} given; expected more than 0, for example {EXAMPLES[quantity]}.")
    return (number / 100, True) if unit == "%" else (number * UNITS[quantity][unit], False)


def _unreadable(text: str, quantity: str) -> BudgetError:
    return BudgetError(
        f"--{quantity} {text!r} cannot be read; expected a number with its unit, for example {EXAMPLES[quantity]}."
    )


def show_amount(value: float, quantity: str) -> str:
    """Three significant digits with a unit: 0.182 ms, 150M."""
    if quantity == "latency":
        return f"{value:.3g} ms"
    unit, factor = next(((u, f) for u, f in (("G", 1e9), ("M", 1e6), ("K", 1e3)) if value >= f), ("", 1.0))
    return f"{value / factor:.3g}{unit}"
