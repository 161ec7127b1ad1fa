"""Costs that are sums over gene pairs: tabulated once, then any number of structures by array gathers.

A layer touches at most two genes, so MACs, parameters and predicted latency all have this form. It is what makes
millions of structures a second, exact minima and feasible-by-construction sampling possible.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from latency.graph.axis import AnyAxis

MERGED_ENTRIES = 2**15
"""Entries of a merged table: 256 KiB, which the second-level cache holds."""

ELIMINATION_ENTRIES = 2**22
"""Entries of the largest table that looking for the cheapest structure may make."""

BLOCK = 4096
"""Structures costed at a time: their indices stay in the cache."""

LINEAR_POINTS = 8


@dataclass(frozen=True)
class Term:
    """`cost(*lengths)` of the lengths of `axes`, which together depend on at most two genes. Vectorised."""

    axes: tuple[AnyAxis, ...]
    cost: Callable[..., Any]

    @property
    def genes(self) -> tuple[int, ...]:
        """The genes it depends on, ascending."""
        return tuple(sorted(frozenset().union(*(axis.genes for axis in self.axes))))


def split_terms(axes: Sequence[AnyAxis], cost: Callable[..., Any]) -> list[Term]:
    """Terms for a cost that is proportional to each length: one for each combination of the axes' parts."""
    return [Term(parts, cost) for parts in itertools.product(*(axis.parts for axis in axes))]


def linear_terms(
    inputs: AnyAxis, outputs: AnyAxis, cost: Callable[..., Any], smallest: np.ndarray, *, dense: bool
) -> list[Term]:
    """Terms for a cost whose axes depend on more than two genes: what reads a concatenation.

    For each output length, the cost is replaced by its least-squares line over all input lengths from `smallest`
    (int64[L]) to full width; a line in a sum of widths is a sum over their genes. Where a `dense` operation makes a sum of
    widths, too, it is a line in both; otherwise outputs follow inputs.
    """
    if dense and len(outputs.genes) > 1:
        return _bilinear_terms(inputs, outputs, cost, smallest)
    lengths = _spread(inputs, smallest)

    def line(n: Any) -> tuple[np.ndarray, np.ndarray]:
        """Intercept and slope, for output lengths `n`."""
        at = np.ravel(n)[:, None] if dense else lengths * outputs.size // inputs.size
        values = np.broadcast_to(cost(lengths, at), (np.size(n), LINEAR_POINTS))
        slope, intercept = np.polyfit(lengths, values.T, 1)
        return intercept.reshape(np.shape(n)), slope.reshape(np.shape(n))

    if not dense:
        intercept, slope = line(0)
        return [Term((), lambda: intercept), *(Term((part,), lambda n: slope * n) for part in inputs.parts)]
    return [
        Term((outputs,), lambda n: line(n)[0]),
        *(Term((part, outputs), lambda m, n: m * line(n)[1]) for part in inputs.parts),
    ]


def _bilinear_terms(inputs: AnyAxis, outputs: AnyAxis, cost: Callable[..., Any], smallest: np.ndarray) -> list[Term]:
    """Least squares: a constant, a price for each input, for each output, and for each pair of them."""
    reads, makes = np.meshgrid(_spread(inputs, smallest), _spread(outputs, smallest), indexing="ij")
    sizes = [np.ones(reads.size), reads.ravel(), makes.ravel(), (reads * makes).ravel()]
    constant, read, made, both = np.linalg.lstsq(np.stack(sizes, axis=1), np.ravel(cost(reads, makes)), rcond=None)[0]
    return [
        Term((), lambda: constant),
        *(Term((part,), lambda n: read * n) for part in inputs.parts),
        *(Term((part,), lambda n: made * n) for part in outputs.parts),
        *split_terms((inputs, outputs), lambda m, n: both * m * n),
    ]


def _spread(axis: AnyAxis, smallest: np.ndarray) -> np.ndarray:
    """int64[LINEAR_POINTS]: lengths from that of `smallest` to the full one."""
    return np.linspace(axis.length(smallest), axis.size, LINEAR_POINTS).round().astype(np.int64)


class IntractableCost(Exception):
    """Genes are connected so densely that they cannot be eliminated one after another."""


@dataclass(frozen=True)
class Elimination:
    """What eliminating all genes left behind.

    `steps` are (gene, scope, joint) in the order in which genes can be chosen: joint[choices of scope…, choices of gene] is
    the gene's cost and that of all genes still to be chosen, given those of its scope. `total` is over all structures.
    """

    steps: tuple[tuple[int, tuple[int, ...], np.ndarray], ...]
    total: float


@dataclass(frozen=True)
class PairwiseCost:
    """constant + Σ tables[g][i_g] + Σ tables[g, h][i_g, i_h], where i are indices into the genes' `choices`."""

    choices: tuple[np.ndarray, ...]
    constant: float
    tables: Mapping[tuple[int, ...], np.ndarray]

    @classmethod
    def tabulate(cls, terms: Sequence[Term], choices: Sequence[Sequence[int]]) -> PairwiseCost:
        """Evaluate every term on the full grid of its genes' choices; terms of the same genes share a table."""
        grids = tuple(np.asarray(c, dtype=np.int64) for c in choices)
        tables: dict[tuple[int, ...], np.ndarray] = {}
        constant = 0.0
        for term in terms:
            genes = term.genes
            if len(genes) > 2:
                raise ValueError(f"a term depends on {len(genes)} genes; at most two can be tabulated")
            widths = _grid(genes, grids)
            value = term.cost(*(axis.length(widths) for axis in term.axes))
            if genes:
                tables[genes] = tables.get(genes, 0.0) + np.broadcast_to(
                    np.asarray(value, dtype=np.float64), tuple(len(grids[gene]) for gene in genes)
                )
            else:
                constant += float(value)
        return cls(grids, constant, _absorb_singles(tables))

    def indices(self, widths: np.ndarray) -> np.ndarray:
        """Choice indices int64[P, L] of `widths` int64[P, L], each of which must be a choice."""
        columns = [np.searchsorted(grid, widths[:, gene]) for gene, grid in enumerate(self.choices)]
        return np.stack(columns, axis=1) if columns else np.zeros((len(widths), 0), dtype=np.int64)

    def widths(self, indices: np.ndarray) -> np.ndarray:
        """Widths int64[P, L] at choice indices int64[P, L]."""
        columns = [grid[indices[:, gene]] for gene, grid in enumerate(self.choices)]
        return np.stack(columns, axis=1) if columns else np.zeros((len(indices), 0), dtype=np.int64)

    def at(self, indices: np.ndarray) -> np.ndarray:
        """Costs float64[P] of structures given as choice indices int64[P, L]."""
        blocks = [self._at([part[:, gene] for gene in range(part.shape[1])], len(part)) for part in _blocks(indices)]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    def at_widths(self, widths: np.ndarray) -> np.ndarray | None:
        """Costs float64[P] of structures int64[P, L]; None where a width is none of its gene's choices."""
        blocks = []
        for part in _blocks(widths):
            indices = [index.take(part[:, gene]) for gene, index in enumerate(self._index_of_width)]
            if any(index.min() < 0 for index in indices):
                return None
            blocks.append(self._at(indices, len(part)))
        return np.concatenate(blocks) if blocks else np.zeros(0)

    def _at(self, indices: Sequence[np.ndarray], count: int) -> np.ndarray:
        """Costs of `count` structures, given one index array for each gene."""
        total = np.full(count, self.constant)
        for genes, table in self._merged:
            flat = indices[genes[0]]
            for gene in genes[1:]:
                flat = flat * len(self.choices[gene]) + indices[gene]
            total += table.take(flat)
        return total

    @cached_property
    def _index_of_width(self) -> list[np.ndarray]:
        """For each gene, choice index by width; -1 where a width is no choice."""
        result = []
        for grid in self.choices:
            index = np.full(grid[-1] + 1, -1, dtype=np.int64)
            index[grid] = np.arange(len(grid))
            result.append(index)
        return result

    @cached_property
    def _merged(self) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """The tables, flattened; those that share a gene are merged as long as the sum stays in cache: fewer look-ups."""
        merged = dict(self.tables)

        def size(genes: tuple[int, ...]) -> int:
            return math.prod(len(self.choices[gene]) for gene in genes)

        while True:
            unions = {(a, b): tuple(sorted({*a, *b})) for a, b in itertools.combinations(merged, 2) if not set(a).isdisjoint(b)}
            small = {pair: genes for pair, genes in unions.items() if size(genes) <= MERGED_ENTRIES}
            if not small:
                return [(genes, table.ravel()) for genes, table in merged.items()]
            (a, b), genes = min(small.items(), key=lambda item: size(item[1]))
            total = _aligned(merged.pop(a), a, genes) + _aligned(merged.pop(b), b, genes)
            merged[genes] = merged.get(genes, 0.0) + total

    def scaled(self, factor: float) -> PairwiseCost:
        """The same cost times `factor`."""
        return PairwiseCost(self.choices, self.constant * factor, {k: t * factor for k, t in self.tables.items()})

    def plus(self, other: PairwiseCost) -> PairwiseCost:
        """The sum of two costs over the same choices."""
        tables = dict(self.tables)
        for genes, table in other.tables.items():
            tables[genes] = tables.get(genes, 0.0) + table
        return PairwiseCost(self.choices, self.constant + other.constant, _absorb_singles(tables))

    def eliminate(self, reduce: Callable[[np.ndarray], np.ndarray]) -> Elimination:
        """Eliminate one gene after another, `reduce` taking its last axis out of the costs it is part of.

        Dynamic programming on the graph of gene pairs: the gene with the fewest neighbours goes first, leaving a table over
        them. Chains and residual stages never need more than three axes.

        Raises:
            IntractableCost: everything is connected to everything (DenseNet): a table would outgrow ELIMINATION_ENTRIES.
        """
        factors = dict(self.tables)
        constant = self.constant
        steps: list[tuple[int, tuple[int, ...], np.ndarray]] = []
        remaining = set(range(len(self.choices)))
        while remaining:
            gene = min(remaining, key=lambda g: len(_neighbours(g, factors)))
            scope = tuple(sorted(_neighbours(gene, factors)))
            shape = tuple(len(self.choices[g]) for g in (*scope, gene))
            if math.prod(shape) > ELIMINATION_ENTRIES:
                raise IntractableCost(f"a table of {math.prod(shape)} entries would be needed")
            joint = np.zeros(shape)
            for genes in [genes for genes in factors if gene in genes]:
                joint = joint + _aligned(factors.pop(genes), genes, (*scope, gene))
            steps.append((gene, scope, joint))
            if scope:
                factors[scope] = factors.get(scope, 0.0) + reduce(joint)
            else:
                constant += float(reduce(joint))
            remaining.remove(gene)
        return Elimination(tuple(reversed(steps)), constant)

    def argmin(self) -> np.ndarray:
        """int64[L]: choice indices of the cheapest structure, exactly.

        Where that is intractable, it is the best that changing one gene at a time reaches from the narrowest structure: the
        cheapest, where wider is never cheaper.
        """
        try:
            steps = self.eliminate(lambda joint: joint.min(axis=-1)).steps
        except IntractableCost:
            return self._descended()
        best = np.zeros(len(self.choices), dtype=np.int64)
        for gene, scope, joint in steps:
            best[gene] = joint[tuple(best[g] for g in scope)].argmin()
        return best

    def _descended(self) -> np.ndarray:
        """int64[L]: where changing one gene at a time gets no cheaper, from the narrowest structure."""
        index = np.zeros(len(self.choices), dtype=np.int64)
        cost = np.inf
        while self.at(index[None])[0] < cost:
            cost = self.at(index[None])[0]
            for gene in range(len(index)):
                index[gene] = self.conditional(gene, index[None])[0].argmin()
        return index

    def conditional(self, gene: int, indices: np.ndarray) -> np.ndarray:
        """float64[P, K]: what each choice of `gene` adds, all other genes held at `indices` [P, L]."""
        total = np.zeros((len(indices), len(self.choices[gene])))
        for genes, table in self.tables.items():
            if gene not in genes:
                continue
            if len(genes) == 1:
                total += table
            elif genes[0] == gene:
                total += table.T[indices[:, genes[1]]]
            else:
                total += table[indices[:, genes[0]]]
        return total


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]


def _grid(genes: tuple[int, ...], grids: tuple[np.ndarray, ...]) -> np.ndarray:
    """int64[K_g, …, L]: widths in which each of `genes` runs over its own dimension."""
    shape = tuple(len(grids[gene]) for gene in genes)
    widths = np.zeros((*shape, len(grids)), dtype=np.int64)
    for dimension, gene in enumerate(genes):
        view = [1] * len(genes)
        view[dimension] = -1
        widths[..., gene] = grids[gene].reshape(view)
    return widths


def _absorb_singles(tables: dict[tuple[int, ...], np.ndarray]) -> dict[tuple[int, ...], np.ndarray]:
    """Fold one-gene tables into a two-gene table of the same gene: fewer gathers a structure."""
    pairs: dict[tuple[int, ...], np.ndarray] = {genes: table for genes, table in tables.items() if len(genes) == 2}
    for genes, table in tables.items():
        if len(genes) == 2:
            continue
        gene = genes[0]
        host = next((pair for pair in pairs if gene in pair), None)
        if host is None:
            pairs[genes] = table
        else:
            pairs[host] = pairs[host] + (table[:, None] if host[0] == gene else table[None, :])
    return pairs


def _neighbours(gene: int, factors: Mapping[tuple[int, ...], np.ndarray]) -> set[int]:
    return {other for genes in factors if gene in genes for other in genes} - {gene}


def _aligned(table: np.ndarray, genes: tuple[int, ...], scope: tuple[int, ...]) -> np.ndarray:
    """`table` over `genes` viewed with one broadcastable dimension for each gene of `scope`."""
    order = sorted(range(len(genes)), key=lambda dimension: scope.index(genes[dimension]))
    return table.transpose(order)[tuple(slice(None) if gene in genes else None for gene in scope)]
