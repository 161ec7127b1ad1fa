"""What the shape of a kernel says of its work: multiply-adds, padding, bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from latency.graph.kernels import KERNEL_FIELDS, TRANSPOSED, family_of, group_size, operation_of, window_area

SHAPE_FIELDS = tuple(name for name in KERNEL_FIELDS if name != "type")
BLOCKS = (4, 8, 16)
"""Channel blocks of vector units: 4 on ARM, 8 with AVX2, 16 with AVX-512. Which of them a device pads to, prices tell."""

MOVES = frozenset({"reshape", "transpose"})
"""Operations after which axis 1 may hold anything: nothing is padded to blocks of it."""

GROUPS = 4
"""The column of groups: only grouped convolutions have any."""

TERMS = 5 + len(BLOCKS)
"""Columns of `physical_terms`."""

Columns = Mapping[str, np.ndarray]


def physical_terms(family: str, columns: Columns) -> np.ndarray:
    """float64[N, TERMS]: 1, multiply-adds, weights, activations read and written, groups; and multiply-adds on channels
    padded to each of BLOCKS."""
    batch, cin, cout = (columns[name].astype(np.float64) for name in ("batch", "cin", "cout"))
    inside = columns["height"] * columns["width"] * batch
    outside = columns["out_height"] * columns["out_width"] * batch
    group = group_size(family) if family.startswith("groupconv") else 0
    area, (read, made) = window_area(family), channels_of_a_group(group, cin, cout)
    groups = cout / made
    if not family.startswith(("conv", "groupconv", "gemm", "matmul")):
        read = np.ones_like(cin)  # each output has one channel behind it, its own
    applied = inside if operation_of(family) in TRANSPOSED else outside  # positions that the window is put on
    blocks = BLOCKS if operation_of(family) not in MOVES else (1,) * len(BLOCKS)
    padded = [area * _padded(read, block) * _padded(made, block) * groups * applied for block in blocks]
    terms = (np.ones_like(cin), area * read * cout * applied, area * read * cout, cin * inside + cout * outside,
             np.where(groups > 1, groups, 0), *padded)  # fmt: skip
    return np.stack(np.broadcast_arrays(*terms), axis=1)


def channels_of_a_group(group: int | np.ndarray, cin: np.ndarray, cout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(read, made): channels of one group of a grouped convolution, which is what is padded; all channels of anything else.

    Args:
        group: input channels of each group; 0 where the convolution is not grouped.
    """
    grouped = np.asarray(group) > 0
    return np.where(grouped, group, cin), np.where(grouped, cout * group / cin, cout)


def _padded(channels: np.ndarray, block: int) -> np.ndarray:
    return np.where(channels > 1, np.ceil(channels / block) * block, channels)


@dataclass(frozen=True)
class Kernels:
    """N kernels: types str[N] with epilogue, shape columns int[N] each."""

    types: np.ndarray
    columns: Columns

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Kernels:
        """Those of rows of KERNEL_FIELDS."""
        return cls(frame["type"].to_numpy(dtype=str), {name: frame[name].to_numpy() for name in SHAPE_FIELDS})

    def take(self, index: np.ndarray) -> Kernels:
        """Some of them."""
        return Kernels(self.types[index], {name: column[index] for name, column in self.columns.items()})

    def terms(self) -> np.ndarray:
        """float64[N, TERMS]: `physical_terms` of each."""
        result = np.zeros((len(self.types), TERMS))
        families = np.array([family_of(one) for one in self.types])
        for family in np.unique(families):
            mask = families == family
            result[mask] = physical_terms(str(family), {name: column[mask] for name, column in self.columns.items()})
        return result
