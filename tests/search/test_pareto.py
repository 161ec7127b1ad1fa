"""Fronts, against the definition."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.pareto import crowding_distance, front, nondominated_sort

POINTS = arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 5).map(float))


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a <= b).all() and (a < b).any())


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points: np.ndarray) -> None:
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert front(points).tolist() == expected


@given(POINTS)
def test_no_point_comes_before_one_that_dominates_it(points: np.ndarray) -> None:
    order = nondominated_sort(points)
    assert sorted(order) == list(range(len(points)))
    for early, late in ((order[i], order[j]) for i in range(len(order)) for j in range(i + 1, len(order))):
        assert not dominates(points[late], points[early])


def test_the_ends_and_lonely_points_of_a_front_come_first() -> None:
    points = np.array([[0, 10], [1, 9], [2, 8], [6, 4], [10, 0]], dtype=float)
    np.testing.assert_allclose(crowding_distance(points), [np.inf, 0.4, 1.0, 1.6, np.inf])
    assert nondominated_sort(points).tolist() == [0, 4, 3, 2, 1]
    assert nondominated_sort(np.empty((0, 2))).tolist() == []
