"""Fronts of several objectives, all to be minimised, and NSGA-II's order (Deb et al. 2002, IEEE TEC 6, section III)."""

from __future__ import annotations

import numpy as np


def front(objectives: np.ndarray) -> np.ndarray:
    """bool[P]: which points float64[P, M] no other point dominates: is nowhere worse than and somewhere better."""
    no_worse = (objectives[:, None] <= objectives[None]).all(axis=2)
    better = (objectives[:, None] < objectives[None]).any(axis=2)
    dominated: np.ndarray = np.any(no_worse & better, axis=0)
    return ~dominated


def nondominated_sort(objectives: np.ndarray) -> np.ndarray:
    """int64[P]: points float64[P, M] by front after front; within one, those in thin company first."""
    order: list[np.ndarray] = []
    left = np.arange(len(objectives))
    while len(left):
        inside = front(objectives[left])
        members = left[inside]
        order.append(members[np.argsort(-crowding_distance(objectives[members]), kind="stable")])
        left = left[~inside]
    return np.concatenate(order) if order else left


def crowding_distance(objectives: np.ndarray) -> np.ndarray:
    """float64[P]: how far apart each point's neighbours on a front are; infinite at its ends."""
    distance = np.zeros(len(objectives))
    for values in objectives.T:
        order = np.argsort(values, kind="stable")
        extent = values[order[-1]] - values[order[0]]
        gaps = (values[order[2:]] - values[order[:-2]]) / (extent or 1.0)
        distance[order[1:-1]] += gaps
        distance[order[[0, -1]]] = np.inf
    return distance
