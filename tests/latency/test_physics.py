"""Prices of operations, on kernels whose cost follows a law that is known."""

import numpy as np
import pandas as pd
import pytest

from latency.kernels import KERNEL_FIELDS
from latency.physics import Kernels, Physics
from latency.regression import KernelRegressor

MS_A_MAC = 2e-8
MS_A_GROUP = 1e-3
SLOWER = 4.0  # a grouped convolution's multiply-adds


def kernels(kind: str, channels: list[int], sizes: list[int]) -> pd.DataFrame:
    rows = [(kind, 1, c, c, size, size, size, size) for c in channels for size in sizes]
    return pd.DataFrame(rows, columns=list(KERNEL_FIELDS))


def lawful_ms(frame: pd.DataFrame) -> np.ndarray:
    """Dense convolutions by their multiply-adds; grouped ones (of 16) `SLOWER`, and something for every group."""
    positions = (frame["out_height"] * frame["out_width"]).to_numpy()
    cin, cout = frame["cin"].to_numpy(), frame["cout"].to_numpy()
    grouped = frame["type"].str.startswith("groupconv").to_numpy()
    dense_ms = MS_A_MAC * 9 * cin * cout * positions
    grouped_ms = SLOWER * MS_A_MAC * 9 * 16 * cout * positions + MS_A_GROUP * cin / 16
    return np.where(grouped, grouped_ms, dense_ms)


@pytest.fixture
def seen() -> pd.DataFrame:
    """Dense ones everywhere, grouped ones at large resolutions only."""
    dense = kernels("conv3x3s1+relu", [32, 64, 128, 256], [56, 28, 14, 7])
    return pd.concat([dense, kernels("groupconv3x3s1g16+relu", [32, 64, 128, 256], [56, 28])], ignore_index=True)


def test_an_operation_keeps_its_own_prices_where_it_was_not_measured(seen) -> None:
    small = kernels("groupconv3x3s1g16+relu", [48, 96, 192], [14, 7])
    physics = Physics(Kernels.of(seen), lawful_ms(seen), np.ones(len(seen)))
    np.testing.assert_allclose(physics.predict(Kernels.of(small)), lawful_ms(small), rtol=0.1)
    regressor = KernelRegressor(seen.assign(ms=lawful_ms(seen)), np.ones(len(seen), dtype=bool))
    np.testing.assert_allclose(regressor.predict(Kernels.of(small)), lawful_ms(small), rtol=0.2)


def test_a_single_kernel_of_an_operation_costs_elsewhere_what_all_operations_do(seen) -> None:
    """One row cannot tell six prices: the common ones fill in, and the row itself is met."""
    one = kernels("depthwise3x3s1+relu", [64], [28])
    both, ms = pd.concat([seen, one], ignore_index=True), np.append(lawful_ms(seen), 0.05)
    physics = Physics(Kernels.of(both), ms, np.ones(len(both)))
    predicted = physics.predict(Kernels.of(kernels("depthwise3x3s1+relu", [64], [28, 14])))
    assert np.isfinite(predicted).all()
    assert 0 < predicted[1] < predicted[0] < 0.1
