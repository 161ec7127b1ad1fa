"""Uniformly scaled structures."""

import numpy as np

from search.feasible import FeasibleSet
from search.uniform import uniform_near, uniform_structures, uniform_within


def test_they_grow_from_narrow_to_unpruned(tiny_network) -> None:
    scaled = uniform_structures(tiny_network)
    assert (np.diff(scaled, axis=0) >= 0).all()
    np.testing.assert_array_equal(scaled[-1], tiny_network.max_widths)
    assert len(np.unique(scaled, axis=0)) == len(scaled)


def test_the_nearest_in_latency_comes_first(tiny_network) -> None:
    half = tiny_network.macs(tiny_network.max_widths) / 2
    near = uniform_near(tiny_network, tiny_network.macs, half)
    off = np.abs(np.log(tiny_network.macs(near) / half))
    assert (np.diff(off) >= 0).all()


def test_the_widest_within_a_budget(tiny_network) -> None:
    scaled = uniform_structures(tiny_network)
    macs = tiny_network.macs(scaled)
    feasible = FeasibleSet(tiny_network, macs=float(macs[3]))
    np.testing.assert_array_equal(uniform_within(feasible), scaled[macs <= macs[3]][-1:])
    least = tiny_network.macs([gene.choices[0] for gene in tiny_network.genes])
    assert uniform_within(FeasibleSet(tiny_network, macs=float(least))).shape[0] <= 1
