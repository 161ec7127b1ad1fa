"""Which structures to measure: a few dozen random ones, or an orthogonal array that leaves no pair out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latency.graph.network import Gene, Network

QUICK_STRUCTURES = 45
SHORT_STRUCTURES = 120
SHORT_MACS = 50_000_000
"""Networks below this run so short that profiles say little: more end-to-end times have to carry the fit."""

LONG_STRUCTURES = 35
LONG_MACS = 2_000_000_000
"""Networks above this take long to measure, and their profiles say nearly everything."""


def quick_plan(network: Network, structures: int | None = None, seed: int = 0) -> np.ndarray:
    """int64[P, L], P ≤ `structures`: the unpruned network, the smallest, and random ones of all sizes, none twice.

    Half of them draw every gene freely; the others scatter around one common scale, since independent draws alone
    would all have about the same latency.
    """
    structures = structures or _enough(network)
    rng = np.random.default_rng(seed)
    ends = [network.max_widths, tuple(gene.choices[0] for gene in network.genes)]
    drawn = [*ends, *(_random(network.genes, rng, index % 2 == 0) for index in range(structures - 2))]
    return np.array(list(dict.fromkeys(drawn)))


def _enough(network: Network) -> int:
    macs = network.macs(network.max_widths)
    if macs < SHORT_MACS:
        return SHORT_STRUCTURES
    return LONG_STRUCTURES if macs > LONG_MACS else QUICK_STRUCTURES


def _random(genes: Sequence[Gene], rng: np.random.Generator, scattered: bool) -> tuple[int, ...]:
    low, high = 0.0, 1.0
    if scattered:
        centre = rng.uniform()
        low, high = max(0.0, centre - 0.25), min(1.0, centre + 0.25)
    positions = rng.uniform(low, high, len(genes))
    return tuple(gene.choices[int(p * len(gene.choices) * (1 - 1e-9))] for gene, p in zip(genes, positions, strict=True))


def full_plan(network: Network) -> np.ndarray:
    """int64[P, L]: every pair of choices of every two genes that share a layer occurs at least once.

    For a prime p the array OA(p², p + 1, p, 2) has row (a, b) hold a·j + b mod p in column j < p, and a in column p:
    any two columns show every pair of levels exactly once (Bose 1938; Hedayat et al., Orthogonal Arrays, theorem 3.1).
    Genes that never share a layer may use the same column; p is the smallest prime that has enough levels and columns.
    """
    levels = max(len(gene.choices) for gene in network.genes)
    degree = max(len(others) for others in neighbours(network))
    prime = next(p for p in range(max(levels, degree), 10**6) if _is_prime(p))
    columns = _columns(network, prime + 1)
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(prime), np.arange(prime), indexing="ij"))
    plan = np.empty((prime * prime, len(network.genes)), dtype=np.int64)
    for gene, column in enumerate(columns):
        level = a if column == prime else (a * column + b) % prime
        choices = np.array(network.genes[gene].choices)
        plan[:, gene] = choices[level * len(choices) // prime]
    return np.unique(plan, axis=0)[::-1]


def neighbours(network: Network) -> list[set[int]]:
    """For each gene, the genes it shares a layer with."""
    shared: list[set[int]] = [set() for _ in network.genes]
    for layer in network.layers:
        for gene in layer.genes:
            shared[gene] |= layer.genes - {gene}
    return shared


def _columns(network: Network, available: int) -> list[int]:
    """A column for each gene, in network order: the least used of those that no neighbour has."""
    columns: list[int] = []
    for gene, others in enumerate(neighbours(network)):
        taken = {columns[other] for other in others if other < gene}
        free = [column for column in range(available) if column not in taken]
        columns.append(min(free, key=columns.count))
    return columns


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
