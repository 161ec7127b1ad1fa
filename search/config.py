"""What a run is asked to do. Light to import: the command line needs it before anything heavy."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latency.errors import MillipruneError
from search.budget import Budget, BudgetError, check_shared, parse_budget

RECIPES = ("focused", "paper", "light", "sandwich")
OPTIMIZERS = ("sgd", "adamw")


def check_recipe(name: str) -> None:
    """Raises MillipruneError where there is no such recipe for a PruningNet."""
    if name not in RECIPES:
        raise MillipruneError(f"--recipe {name} given; expected one of {', '.join(RECIPES)}.")


def check_optimizer(name: str | None) -> None:
    """Raises MillipruneError where there is none of that name."""
    if name not in (None, *OPTIMIZERS):
        raise MillipruneError(f"--optimizer {name} given; expected {' or '.join(OPTIMIZERS)}.")


def without_password(url: str) -> str:
    """The URL of a database as it may be shown and kept."""
    return re.sub(r"(//[^/:@]*):[^@/]*@", r"\1:…@", url)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result. Budgets as text: "15ms", "60%", "150M". Without an optimiser, a learning
    rate, or epochs for PruningNet, these are what suits the network and the recipe."""

    latency: str | None = None
    macs: str | None = None
    params: str | None = None
    network: str = "mobilenet_v1"
    data: str = "digits"
    image_size: int | None = None
    device: str = "ort"
    threads: int = 1
    precision: str = "fp32"
    batch: int = 1
    align: int | None = None
    weights: str | None = None
    distill: bool = False
    recipe: str = "focused"
    from_scratch: bool = False
    pareto: bool = False
    storage: str | None = None
    population: int = 50
    generations: int = 20
    pruningnet_epochs: int | None = None
    epochs: int = 30
    train_batch: int = 64
    optimizer: str | None = None
    lr: float | None = None
    seed: int = 0

    def budgets(self) -> dict[str, Budget]:
        """Those that were given, by quantity; a Pareto search needs one for latency, by default that of the unpruned network.

        Raises:
            BudgetError: one of them cannot be read.
        """
        given = {"latency": self.latency or ("100%" if self.pareto else None), "macs": self.macs, "params": self.params}
        return {quantity: parse_budget(text, quantity) for quantity, text in given.items() if text is not None}

    def check(self) -> None:
        """Raises MillipruneError where an option cannot be read or does not go with another."""
        budgets = self.budgets()
        check_recipe(self.recipe)
        check_optimizer(self.optimizer)
        if not budgets and not self.pareto:
            raise BudgetError("no budget given; expected at least one of --latency, --macs and --params, or --pareto.")
        if self.storage:
            check_shared(budgets, "--storage")

    def recorded(self) -> dict[str, Any]:
        """What is written down of it: everything but a database's password."""
        return asdict(self) | {"storage": self.storage and without_password(self.storage)}

    @property
    def slug(self) -> str:
        """A folder name for its runs."""
        budgets = (("", self.latency), ("macs", self.macs), ("params", self.params))
        parts = [
            self.network.replace(":", "."), Path(self.data).name, self.device.partition(":")[0],
            *(["pareto"] if self.pareto else []),
            *(f"{name}{text}".replace("%", "pc") for name, text in budgets if text), f"s{self.seed}",
        ]  # fmt: skip
        return "-".join(parts)
