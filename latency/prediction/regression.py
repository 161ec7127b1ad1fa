"""What one kernel costs: from physics to all operations to its own family, each level correcting the one before.

Physics (a constant, multiply-adds, the same on padded channels, bytes) is fitted by least squares, for products and for
everything else, and for each operation of them. A Gaussian process over all operations of a kind corrects it, and one over
the kernels of one family (the same operation, whatever its epilogue) corrects that. Near measured kernels their own rows
decide, with all steps and cliffs (alignment, layout conversions); far from them what similar operations cost; and failing
that, physics.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from latency.graph.kernels import KERNEL_FIELDS, Kernel, family_of, group_size, is_product, operation_of, window_area
from latency.graph.work import BLOCKS, SHAPE_FIELDS, Kernels, channels_of_a_group
from latency.prediction.gaussian import Posterior, condition, log_evidence, squared_distances
from latency.prediction.physics import RESOLUTION_MS, Physics

REMAINDER_DISTANCES = (1.0, 0.5, 0.5)
"""How unlike two channel counts are, of which only one is a multiple of each block; one is a doubling of the size."""

SCALES = (1.0, 2.0, 4.0)
"""Doublings of a size over which kernels resemble each other: the one with the best evidence is taken."""

NOISE = 0.04
"""Relative scatter of one kernel's profiled time."""

MOST_ROWS = 400
"""Kernels of one family that the process is conditioned on; more are drawn from at random."""

SIZES, LABELS = slice(0, 6), slice(6, None)
"""Columns of an embedding: logarithms of sizes, and the rest, ..."""

REMAINDERS, VARIANTS = slice(0, 6), slice(6, None)
"""... of which these are remainders of channels, and which epilogue or operation it is."""

OFFSET_SCALE = 4.0
"""How much slower the offset of one variant varies with size than what all variants share."""


class Level:
    """A Gaussian process on the logarithm of real over predicted milliseconds of the level below.

    Args:
        below: what it corrects. embed: float64[N, D] of N kernels: sizes in doublings, remainders, variants.
        kernels, ms, rows: different kernels, their mean milliseconds, and how many rows each is the mean of.
    """

    def __init__(
        self, below: Physics | Level, embed: Callable[[Kernels], np.ndarray], kernels: Kernels, ms: np.ndarray, rows: np.ndarray
    ) -> None:
        self._below, self._embed = below, embed
        chosen = np.random.default_rng(0).permutation(len(ms))[:MOST_ROWS]
        self._left_out = np.full(len(ms), np.nan)
        kernels, ms, rows = kernels.take(chosen), ms[chosen], rows[chosen]
        self._points = embed(kernels)
        self._base = below.predict(kernels)
        target = np.log((ms + RESOLUTION_MS) / (self._base + RESOLUTION_MS))
        certainty = np.maximum(ms / (ms + RESOLUTION_MS), 1e-6)  # a runtime may leave all of them out
        self._mean = float(np.average(target, weights=certainty))
        self._variance = max(float(np.average((target - self._mean) ** 2, weights=certainty)), NOISE**2)
        noise = (NOISE**2 + (1 - certainty) ** 2) / rows
        self._scale, self._posterior = self._conditioned(noise, target - self._mean)
        self._left_out[chosen] = self._corrected(self._base, self._mean + self._posterior.left_out)

    def predict(self, kernels: Kernels) -> np.ndarray:
        """float64[N] milliseconds."""
        return self._corrected(self._below.predict(kernels), self._ratio(kernels))

    def unseen_ms(self, kernels: Kernels, positions: np.ndarray) -> np.ndarray:
        """float64[N] milliseconds of `kernels`, at `positions` int[N] of those it was made from, each as if not seen."""
        result = self._left_out[positions]
        others = np.flatnonzero(np.isnan(result))  # it was not conditioned on these
        result[others] = self.predict(kernels.take(others))
        return result

    def deviation(self, kernels: Kernels) -> np.ndarray:
        """float64[N]: standard deviation of the logarithm of `predict`."""
        covariance = self._covariance(self._likeness(self._embed(kernels)), self._scale)
        prior = np.full(len(covariance), 2 * self._variance)  # at no distance, the two parts of the covariance
        return np.sqrt(self._posterior.variance(prior, covariance) + NOISE**2)

    def _conditioned(self, noise: np.ndarray, target: np.ndarray) -> tuple[float, Posterior]:
        likeness = self._likeness(self._points)
        covariances = {scale: self._covariance(likeness, scale) for scale in SCALES}
        best = max(SCALES, key=lambda scale: log_evidence(covariances[scale], noise, target))
        return best, condition(covariances[best], noise, target)

    def _ratio(self, kernels: Kernels) -> np.ndarray:
        """float64[N]: log of real over predicted below."""
        covariance = self._covariance(self._likeness(self._embed(kernels)), self._scale)
        result: np.ndarray = self._mean + covariance @ self._posterior.weights
        return result

    def _likeness(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of N points and the M known ones, float64[N, M] each: the squared distance of their sizes, how alike they are but
        for these, and how alike their variants. All but sizes have few different values, for each of which it is computed."""
        sizes = squared_distances(points[:, SIZES], self._points[:, SIZES])
        labels, label = np.unique(points[:, LABELS], axis=0, return_inverse=True)
        known = self._points[:, LABELS]
        remainders, variants = (squared_distances(labels[:, part], known[:, part]) for part in (REMAINDERS, VARIANTS))
        same = np.exp(-2 * variants)
        alike = np.exp(-0.5 * remainders) * (1 + same) / 2
        return sizes, alike[label.ravel()], same[label.ravel()]

    def _covariance(self, likeness: tuple[np.ndarray, np.ndarray, np.ndarray], scale: float) -> np.ndarray:
        """Half of what the sizes say is common to all variants; each has a slowly varying offset of its own."""
        sizes, alike, same = likeness
        local = alike * np.exp(sizes * (-0.5 / scale**2))
        return self._variance * (local + same * np.exp(sizes * (-0.5 / (OFFSET_SCALE * scale) ** 2)))

    def _corrected(self, base: np.ndarray, log_ratio: np.ndarray) -> np.ndarray:
        return np.maximum((base + RESOLUTION_MS) * np.exp(log_ratio) - RESOLUTION_MS, base / 5)


def _embedded(kernels: Kernels, alike: Sequence[np.ndarray]) -> np.ndarray:
    """float64[N, D]: sizes, remainders, and in what else kernels are alike or not."""
    columns = kernels.columns
    cin, cout = columns["cin"], columns["cout"]
    area = np.array([window_area(one) for one in kernels.types])
    group = np.array([group_size(one) if one.startswith("groupconv") else 0 for one in kernels.types])
    read, made = channels_of_a_group(group, cin, cout)
    positions = columns["out_height"] * columns["out_width"]
    sizes = [np.log2(size) for size in (cin, cout, positions, columns["batch"], area, np.maximum(group, 1))]
    remainders = [
        (channels % block == 0) * distance
        for channels in (read, made)
        for block, distance in zip(BLOCKS, REMAINDER_DISTANCES, strict=True)
    ]
    return np.stack([*sizes, *remainders, *alike], axis=1).astype(np.float64)


def _by_epilogue(types: np.ndarray) -> Callable[[Kernels], np.ndarray]:
    known = np.unique(types)
    return lambda kernels: _embedded(kernels, [kernels.types == one for one in known])


def _by_operation(types: np.ndarray) -> Callable[[Kernels], np.ndarray]:
    operations = sorted({operation_of(one) for one in types})

    def embed(kernels: Kernels) -> np.ndarray:
        stride = np.array([_stride(one) for one in kernels.types])
        mine = np.array([operation_of(one) for one in kernels.types])
        return _embedded(kernels, [0.5 * np.log2(stride), *(mine == one for one in operations)])

    return embed


@cache
def _stride(kernel_type: str) -> int:
    stride = re.search(r"\dx\d+s(\d+)", kernel_type)
    return int(stride.group(1)) if stride else 1


class _Measured(NamedTuple):
    """Different kernels, their mean milliseconds, and how many rows each is the mean of."""

    kernels: Kernels
    ms: np.ndarray
    rows: np.ndarray

    def take(self, index: np.ndarray) -> _Measured:
        """Some of them."""
        return _Measured(self.kernels.take(index), self.ms[index], self.rows[index])


class KernelRegressor:
    """All kernels of one table: exact ones that were measured lean on their own rows, the rest is regressed.

    What it knows of a family is fitted when the first of its kernels is asked for.

    Args:
        rows: data frame of KERNEL_FIELDS and ms, all that are looked up.
        fitted: bool[rows], those that the regression is fitted to.
    """

    GUESS_ROWS = 1000
    """Kernels, drawn at random, from which it is learnt what guesses are worth; half a second, when the first is made."""

    PRIOR_ROWS = 2
    """The regression counts as much as this many measured rows of the very kernel."""

    def __init__(self, rows: pd.DataFrame, fitted: np.ndarray) -> None:
        groups = rows.groupby(list(KERNEL_FIELDS), sort=False)["ms"]
        distinct = pd.DataFrame({"ms": groups.mean(), "rows": groups.count()}).reset_index()
        looked_up = zip(distinct["ms"].tolist(), distinct["rows"].tolist(), strict=True)
        self._measured = dict(zip(_keys(Kernels.of(distinct)), looked_up, strict=True))
        needed, self._distinct = np.unique(groups.ngroup().to_numpy()[fitted], return_inverse=True)
        self._fitted_ms = rows["ms"].to_numpy()[fitted]
        distinct = distinct.iloc[needed]
        self._known = _Measured(Kernels.of(distinct), distinct["ms"].to_numpy(), distinct["rows"].to_numpy())
        self._of_kind = _groups([is_product(one) for one in self._known.kernels.types])
        self._of_family = _groups([family_of(one) for one in self._known.kernels.types])
        self._kinds: dict[bool, Level] = {}
        self._families: dict[str, Level] = {}
        self._worth: dict[tuple[bool, str], float] = {}

    def covers(self, kernel_type: str) -> bool:
        """Whether its operation has been measured, with whatever window, groups and epilogue."""
        return operation_of(kernel_type) in self._operations

    @cached_property
    def _operations(self) -> frozenset[str]:
        return frozenset(map(operation_of, self._of_family))

    def predict(self, kernels: Kernels) -> np.ndarray:
        """float64[N] milliseconds; a guess from other operations of its kind where a family was not measured."""
        regressed = np.zeros(len(kernels.types))
        for level, index in self._by_level(kernels):
            regressed[index] = level.predict(kernels.take(index))
        ms, rows = np.array([self._measured.get(key, (0.0, 0)) for key in _keys(kernels)]).T
        result: np.ndarray = (ms * rows + self.PRIOR_ROWS * regressed) / (rows + self.PRIOR_ROWS)
        return result

    def unseen_ms(self, rows: np.ndarray) -> np.ndarray:
        """float64[N] milliseconds of some of the fitted rows, int[N], each as if that row had not been seen."""
        index, which = np.unique(self._distinct[rows], return_inverse=True)
        mine, regressed = self._known.take(index), np.zeros(len(index))
        for family, members in _groups([family_of(one) for one in mine.kernels.types]).items():
            positions = np.searchsorted(self._of_family[family], index[members])
            regressed[members] = self._family(family).unseen_ms(mine.kernels.take(members), positions)
        sum_of_others = (mine.ms * mine.rows)[which] - self._fitted_ms[rows]
        result: np.ndarray = (sum_of_others + self.PRIOR_ROWS * regressed[which]) / (mine.rows[which] - 1 + self.PRIOR_ROWS)
        return result

    def deviation(self, kernels: Kernels) -> np.ndarray:
        """float64[N]: standard deviations of the logarithms of `predict`."""
        result = np.zeros(len(kernels.types))
        for level, index in self._by_level(kernels):
            result[index] = level.deviation(kernels.take(index))
        for family, index in _groups([family_of(one) for one in kernels.types]).items():
            if family not in self._of_family:
                result[index] = np.hypot(result[index], self._guess_deviation(family))
        return result

    def _guess_deviation(self, family: str) -> float:
        """How wrong a guess of a family that was not measured is as a whole: as those that were, when each is left out.

        That is of the families of its operation, where there are enough of them, else of all operations of its kind.
        """
        operation = operation_of(family)
        siblings = sum(operation_of(one) == operation for one in self._of_family)
        among = operation if siblings > 2 else ""
        key = (is_product(family), among)
        if key not in self._worth:
            self._worth[key] = self._left_out(*key)
        return self._worth[key]

    def _left_out(self, product: bool, among: str) -> float:
        """Root mean square error of the logarithm of what each group's kernels cost together, predicted from all others: groups
        are the families of operation `among`, or where it is empty operations."""
        mine = np.random.default_rng(0).permutation(self._of_kind.get(product, []))[: self.GUESS_ROWS].astype(int)
        group_of = family_of if among else operation_of
        types = self._known.kernels.types[mine]
        groups = _groups([group_of(one) if not among or operation_of(one) == among else "" for one in types])
        errors = []
        for left_out in (mine[members] for group, members in groups.items() if group):
            others, truth = np.setdiff1d(mine, left_out), self._known.take(left_out)
            if len(others) and truth.ms.any():
                errors.append(np.log(self._from_physics(others).predict(truth.kernels).sum() / truth.ms.sum()))
        return float(np.sqrt(np.mean(np.square(errors)))) if errors else 1.0

    def _by_level(self, kernels: Kernels) -> Iterator[tuple[Level, np.ndarray]]:
        for family, index in _groups([family_of(one) for one in kernels.types]).items():
            yield self._family(family) if family in self._of_family else self._kind(is_product(family)), index

    def _family(self, family: str) -> Level:
        if family not in self._families:
            mine = self._known.take(self._of_family[family])
            below = self._kind(is_product(family))
            self._families[family] = Level(below, _by_epilogue(mine.kernels.types), *mine)
        return self._families[family]

    def _kind(self, product: bool) -> Level:
        """Of all products, or of all other operations; where none of these was measured, of those."""
        product = product if product in self._of_kind else not product
        if product not in self._kinds:
            self._kinds[product] = self._from_physics(self._of_kind[product])
        return self._kinds[product]

    def _from_physics(self, index: np.ndarray) -> Level:
        """Physics and what corrects it for all operations, both from the known kernels at `index`."""
        mine = self._known.take(index)
        return Level(Physics(*mine), _by_operation(mine.kernels.types), *mine)

    def source(self, kernel: Kernel) -> str:
        """Where its milliseconds come from: "measured", "regressed" or "guessed"."""
        if astuple(kernel) in self._measured:
            return "measured"
        return "regressed" if family_of(kernel.type) in self._of_family else "guessed"

    @property
    def types(self) -> list[str]:
        """Families that have been measured."""
        return sorted(self._of_family)


def _groups(labels: Sequence[Any]) -> dict[Any, np.ndarray]:
    """Positions of each label."""
    result: dict[Any, list[int]] = {}
    for position, label in enumerate(labels):
        result.setdefault(label, []).append(position)
    return {label: np.array(positions) for label, positions in result.items()}


def _keys(kernels: Kernels) -> Iterator[tuple[Any, ...]]:
    return zip(kernels.types.tolist(), *(kernels.columns[name].tolist() for name in SHAPE_FIELDS), strict=True)
