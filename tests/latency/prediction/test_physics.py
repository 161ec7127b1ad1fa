"""Prices of operations, on kernels whose cost follows a law that is known."""

import numpy as np
import pandas as pd
import pytest

from latency.graph.kernels import KERNEL_FIELDS
from latency.graph.work import Kernels
from latency.prediction.physics import Physics
from latency.prediction.regression import KernelRegressor, Level

MS_A_MAC = 2e-8
SLOWER = 4.0  # a grouped convolution's multiply-adds


def kernels(kind: str, channels: list[int], sizes: list[int]) -> pd.DataFrame:
    rows = [(kind, 1, c, c, size, size, size, size) for c in channels for size in sizes]
    return pd.DataFrame(rows, columns=list(KERNEL_FIELDS))


def lawful_ms(frame: pd.DataFrame, ms_a_group: float = 1e-3) -> np.ndarray:
    """Dense convolutions by their multiply-adds; grouped ones (of 16) `SLOWER`, and something for every group."""
    positions = (frame["out_height"] * frame["out_width"]).to_numpy()
    cin, cout = frame["cin"].to_numpy(), frame["cout"].to_numpy()
    grouped = frame["type"].str.startswith("groupconv").to_numpy()
    dense_ms = MS_A_MAC * 9 * cin * cout * positions
    grouped_ms = SLOWER * MS_A_MAC * 9 * 16 * cout * positions + ms_a_group * cin / 16
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
    """One row cannot tell all prices: the common ones fill in, and the row itself is met."""
    one = kernels("depthwise3x3s1+relu", [64], [28])
    both, ms = pd.concat([seen, one], ignore_index=True), np.append(lawful_ms(seen), 0.05)
    physics = Physics(Kernels.of(both), ms, np.ones(len(both)))
    predicted = physics.predict(Kernels.of(kernels("depthwise3x3s1+relu", [64], [28, 14])))
    assert np.isfinite(predicted).all()
    assert 0 < predicted[1] < predicted[0] < 0.1


def padded_ms(frame: pd.DataFrame, block: int) -> np.ndarray:
    """Grouped convolutions by the multiply-adds of their groups, padded; dense ones half as dear. Groups cost nothing."""
    positions = (frame["out_height"] * frame["out_width"]).to_numpy()
    cin, cout = frame["cin"].to_numpy(), frame["cout"].to_numpy()
    size = frame["type"].str.extract(r"g(\d+)\+")[0].fillna(0).astype(int).to_numpy()
    group = np.ceil(size / block) * block
    grouped_ms = 2 * MS_A_MAC * 9 * group * group * (cin / np.maximum(size, 1)) * positions
    return np.where(size > 0, grouped_ms, MS_A_MAC * 9 * cin * cout * positions)


@pytest.mark.parametrize("block", [4, 8, 16])
def test_groups_and_blocks_are_told_apart_where_every_group_has_equally_many_multiply_adds(block: int) -> None:
    """As in ResNeXt's stages; RegNet's narrow groups at low resolution follow from them."""
    stages = [(4, 56), (8, 28), (16, 14), (32, 7)]
    resnext = [kernels(f"groupconv3x3s1g{size}+relu", [4 * size, 16 * size, 32 * size], [side]) for size, side in stages]
    seen = pd.concat([kernels("conv3x3s1+relu", [64, 128, 256], [56, 28, 14, 7]), *resnext], ignore_index=True)
    physics = Physics(Kernels.of(seen), padded_ms(seen, block), np.ones(len(seen)))
    regnet = kernels("groupconv3x3s1g8+relu", [48, 104, 208, 440], [14, 7])
    np.testing.assert_allclose(physics.predict(Kernels.of(regnet)), padded_ms(regnet, block), rtol=0.25)


def test_groups_that_cost_more_than_their_multiply_adds_are_priced() -> None:
    def ms(frame: pd.DataFrame) -> np.ndarray:
        size = frame["type"].str.extract(r"g(\d+)\+")[0].astype(int)
        return padded_ms(frame, 4) + 0.1 * (frame["cin"] / size).to_numpy()

    seen = pd.concat([kernels(f"groupconv3x3s1g{size}+relu", [128, 256], [28, 14]) for size in (4, 16, 32)], ignore_index=True)
    unseen = kernels("groupconv3x3s1g8+relu", [64, 192, 384], [14, 7])
    physics = Physics(Kernels.of(seen), ms(seen), np.ones(len(seen)))
    np.testing.assert_allclose(physics.predict(Kernels.of(unseen)), ms(unseen), rtol=0.1)


def test_what_a_runtime_leaves_out_costs_nothing(seen) -> None:
    left_out = kernels("transpose", [32, 64], [28, 14])
    both = pd.concat([seen.assign(ms=lawful_ms(seen)), left_out.assign(ms=0.0)], ignore_index=True)
    regressor = KernelRegressor(both, np.ones(len(both), dtype=bool))
    assert regressor.predict(Kernels.of(kernels("transpose", [48], [20]))) < 1e-3
    assert np.isfinite(regressor.deviation(Kernels.of(kernels("slice", [48], [20]))))


def test_guesses_are_worth_what_they_prove_where_the_truth_is_known() -> None:
    """An unseen window, where windows differ in nothing but multiply-adds, and where one of them is three times as dear."""
    windows = pd.concat([kernels(f"conv{k}x{k}s1", [32, 64, 128], [28, 14]) for k in (1, 3, 5)], ignore_index=True)
    area = windows["type"].str.extract(r"conv(\d)")[0].astype(int).to_numpy() ** 2
    ms = MS_A_MAC * (area * windows["cin"] * windows["cout"] * windows["out_height"] ** 2).to_numpy()
    unseen = Kernels.of(kernels("conv7x7s1", [48, 96], [28, 14]))
    lawful, erratic = (
        KernelRegressor(windows.assign(ms=times), np.ones(len(ms), dtype=bool))
        for times in (ms, np.where(area == 9, 3 * ms, ms))
    )
    known = Kernels.of(kernels("conv3x3s1", [48, 96], [28, 14]))
    assert (lawful.deviation(unseen) < 0.3).all()
    assert (erratic.deviation(unseen) > 0.7).all()
    assert (erratic.deviation(known) < 0.3).all()
    assert lawful.covers("conv7x7s1")
    assert not lawful.covers("convtranspose7x7s1")


def test_what_is_said_of_a_kernel_as_if_it_had_not_been_seen_comes_from_the_others(seen) -> None:
    spoilt, count = lawful_ms(seen), np.ones(len(seen))
    spoilt[5] *= 3
    level = Level(Physics(Kernels.of(seen), lawful_ms(seen), count), _sizes, Kernels.of(seen), spoilt, count)
    assert level.predict(Kernels.of(seen))[5] > 1.5 * lawful_ms(seen)[5]
    unseen = level.unseen_ms(Kernels.of(seen), np.arange(len(seen)))
    assert unseen[5] == pytest.approx(lawful_ms(seen)[5], rel=0.3)


def test_of_a_few_rows_the_same_is_said_as_of_all(seen) -> None:
    """Of two families, more of the first than the process is conditioned on, every fifth kernel measured twice."""
    more = kernels("conv1x1s1", list(range(8, 218)), [28, 14, 7])
    rows = pd.concat([more, seen, more.iloc[::5]], ignore_index=True)
    rows = rows.assign(ms=lawful_ms(rows) * np.random.default_rng(0).normal(1, 0.05, len(rows)))
    fitted = np.arange(len(rows)) % 7 != 0
    some = np.random.default_rng(1).permutation(fitted.sum())[:40]
    everything, few = (KernelRegressor(rows, fitted) for _ in range(2))
    unseen = everything.unseen_ms(np.arange(fitted.sum()))
    np.testing.assert_allclose(few.unseen_ms(some), unseen[some])


def _sizes(kernels: Kernels) -> np.ndarray:
    """An embedding by sizes alone."""
    sizes = [np.log2(kernels.columns[name]) for name in ("cin", "cout", "out_height")]
    return np.column_stack([*sizes, np.zeros((len(kernels.types), 10))])
