"""Which structures a PruningNet is trained on: all, or those that a search within the budgets can choose.

A PruningNet has one set of generators for all structures, and a few epochs teach it few of them well. Structures within a
tight budget are rare among all, so those it is asked about are the ones it has hardly seen.
"""

from __future__ import annotations

import numpy as np

from latency.devices import Device
from latency.measuring.fingerprint import slug
from pruning.train import Structures, Supernet, all_structures
from search.feasible import FeasibleSet


def trained_on(supernet: Supernet, feasible: FeasibleSet, device: Device, *, front: bool = False) -> Structures:
    """What a PruningNet of this kind is trained on for a search in `feasible`, whose milliseconds are those of `device`.

    Args:
        front: the search is for the whole front up to the budgets, not for what spends them.
    """
    if not supernet.focused:
        return all_structures(feasible.network)
    levels = feasible.levels() if front else [feasible]

    def draw(rng: np.random.Generator) -> np.ndarray:
        return levels[rng.integers(len(levels))].sample(1, rng)[0]

    within = {quantity: [f"{bound:.6g}" for bound in bounds] for quantity, bounds in feasible.bounds().items()}
    where = slug(device.fingerprint()) if "latency" in within else "any"
    return Structures(draw, {"budgets": within, "device": where, "front": front})
