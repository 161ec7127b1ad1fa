"""The verdict on rounds, on times that are scripted."""

import numpy as np
import pytest

from latency.devices import Times
from latency.devices.local import LocalDevice
from latency.errors import MeasurementError
from latency.measuring.fingerprint import GpuState
from latency.measuring.measurement import Protocol


class Scripted:
    """A lawful model whose every round is multiplied by the next number of a script."""

    def __init__(self, inner, script: list[float]) -> None:
        self.inner, self.script, self.calls = inner, script, 0

    def profile(self, runs: int):
        return self.inner.profile(runs)

    def times(self, runs: int) -> Times:
        """A negative number is a disturbed round."""
        self.calls += 1
        factor = self.script[(self.calls - 2) % len(self.script)] if self.calls > 1 else 1.0  # the first is to warm up
        return Times(self.inner.times(runs).ms * abs(factor), np.full(runs, factor > 0))

    def run(self, times: int) -> None:
        self.inner.run(times)

    def close(self) -> None:
        self.closed = True


class ScriptedDevice(LocalDevice):
    name = "scripted"

    def __init__(self, lawful, script: list[float]) -> None:
        self.lawful, self.script = lawful, script
        self.loaded: list[Scripted] = []

    def fingerprint(self) -> dict[str, str]:
        return self.lawful.fingerprint()

    def load(self, model: bytes) -> Scripted:
        self.loaded.append(Scripted(self.lawful.load(model), self.script))
        return self.loaded[-1]


def measured_with(lawful, tiny_network, script: list[float]):
    device = ScriptedDevice(lawful, script)
    model = tiny_network.onnx(tiny_network.max_widths)
    return device.measure_all([model])[0], lawful.load(model).total, device


def test_a_burst_of_noise_leaves_the_latency_alone(lawful, tiny_network) -> None:
    measured, truth, _ = measured_with(lawful, tiny_network, [1, 1, 1, 9, 9, 9, 1, 1])
    assert measured.stable
    assert measured.latency_ms == pytest.approx(truth)
    assert len(measured.rounds_ms) == Protocol().rounds
    assert measured.rounds_ms.max() == pytest.approx(9 * truth)


def test_a_few_quiet_rounds_among_many_slow_ones_are_found(lawful, tiny_network) -> None:
    script = [-1.2 - 0.001 * turn for turn in range(12)] + [1.0, -1.3, 1.0, -1.2] * 7
    measured, truth, _ = measured_with(lawful, tiny_network, script)
    assert measured.stable
    assert measured.latency_ms == pytest.approx(truth)


def test_a_disturbed_round_slows_nothing_and_may_be_the_fastest(lawful, tiny_network) -> None:
    """In a long run others come and go; nothing makes one faster than it is."""
    measured, truth, _ = measured_with(lawful, tiny_network, [1.2, -1, 1.3, -1, -7, 1.1, -1, 1.15])
    assert measured.stable
    assert measured.latency_ms == pytest.approx(truth)


def test_a_measurement_that_was_always_disturbed_is_not_stable(lawful, tiny_network) -> None:
    measured, truth, _ = measured_with(lawful, tiny_network, [-1.0])
    assert not measured.stable
    assert measured.latency_ms == pytest.approx(truth)


def test_unstable_rounds_are_repeated_up_to_the_limit_and_flagged(lawful, tiny_network) -> None:
    measured, _, device = measured_with(lawful, tiny_network, [1 + 0.3 * turn for turn in range(40)])
    protocol = Protocol()
    assert not measured.stable
    assert len(measured.rounds_ms) == protocol.rounds + protocol.revisits * protocol.rounds // 2
    assert "unstable" in repr(measured)
    assert device.loaded[0].closed


def test_where_a_neighbour_stays_nobody_waits_for_its_end(lawful, tiny_network, monkeypatch) -> None:
    protocol = Protocol()
    half = protocol.rounds // 2
    assert len(measured_with(lawful, tiny_network, [-1.0])[0].rounds_ms) == protocol.rounds + protocol.revisits * half
    monkeypatch.setattr("latency.measuring.protocol.IN_VAIN_S", 0.0)
    assert len(measured_with(lawful, tiny_network, [-1.0])[0].rounds_ms) == protocol.rounds + half
    for disturbed, believed in ((13, True), (14, False)):  # whether the last round of the first visit again was quiet
        assert measured_with(lawful, tiny_network, [-1.0] * disturbed + [1.0] * 10)[0].stable == believed


def test_models_are_released_when_one_is_refused(lawful, tiny_network) -> None:
    device = ScriptedDevice(lawful, [1.0])
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the loader raises
        device.measure_all([tiny_network.onnx(tiny_network.max_widths), b"broken"])
    assert device.loaded[0].closed


def test_a_slow_model_gets_fewer_rounds(lawful, tiny_network) -> None:
    model = tiny_network.onnx(tiny_network.max_widths)
    once = lawful.load(model).total
    measured = lawful.measure_all([model], Protocol(round_ms=once, min_runs=1, timed_ms=5.5 * once, warmup_ms=once))[0]
    assert len(measured.rounds_ms) == 6


def test_layout_conversions_belong_to_the_kernel_whose_output_they_convert(lawful, tiny_network) -> None:
    model = tiny_network.onnx(tiny_network.max_widths)

    class Converting(Scripted):
        def profile(self, runs: int):
            (first, *others) = self.inner.profile(runs)
            (second, *rest) = others
            total = sum(ms for _, ms in self.inner.profile(runs))
            return [first, ((), total), second, (("unheard_of",), total), *rest]

    class Converted(ScriptedDevice):
        def load(self, model: bytes) -> Scripted:
            return Converting(self.lawful.load(model), self.script)

    kernels = Converted(lawful, [1.0]).measure_all([model])[0].kernels
    assert kernels["ms"][0] > 0.3 * kernels["ms"].sum()  # converted: what the second kernel reads of the first
    assert kernels["ms"][1] > 0.3 * kernels["ms"].sum()  # expanded: what ran after the second


def test_a_profile_without_our_kernels_is_an_error(lawful, tiny_network) -> None:
    class Silent(Scripted):
        def profile(self, runs: int):
            return []

    class Unheard(ScriptedDevice):
        def load(self, model: bytes) -> Scripted:
            return Silent(self.lawful.load(model), self.script)

    with pytest.raises(MeasurementError, match="no kernel"):
        Unheard(lawful, [1.0]).measure_all([tiny_network.onnx(tiny_network.max_widths)])


def test_what_a_runtime_fused_beyond_our_kernels_is_shared_out_by_their_work(lawful, tiny_network) -> None:
    model = tiny_network.onnx(tiny_network.max_widths)

    class Fused(Scripted):
        def profile(self, runs: int):
            (first, second, third, *rest) = self.inner.profile(runs)
            return [(first[0] + second[0] + third[0], first[1] + second[1] + third[1]), *rest]

    class Fusing(ScriptedDevice):
        def load(self, model: bytes) -> Scripted:
            return Fused(self.lawful.load(model), self.script)

    fused = Fusing(lawful, [1.0]).measure_all([model])[0].kernels["ms"]
    apart = lawful.measure_all([model])[0].kernels["ms"]
    assert (fused > 0).all()
    np.testing.assert_allclose(fused[:3].sum(), apart[:3].sum())
    np.testing.assert_allclose(fused[3:], apart[3:])
    assert fused[:3].argmax() == apart[:3].argmax()


def test_what_the_gpu_said_is_part_of_the_conditions(lawful, tiny_network) -> None:
    class Hot(ScriptedDevice):
        def observed(self) -> GpuState:
            return GpuState(clock_mhz=1410.0, temperature_c=81.0, throttled="SwThermalSlowdown")

    model = tiny_network.onnx(tiny_network.max_widths)
    assert Hot(lawful, [1.0]).measure_all([model])[0].conditions.gpu == Hot(lawful, [1.0]).observed()
    assert lawful.measure(model).conditions.gpu is None


def test_how_close_rounds_must_agree_is_the_devices_own(lawful, tiny_network) -> None:
    class Exact(ScriptedDevice):
        max_spread = 0.005

    model = tiny_network.onnx(tiny_network.max_widths)
    script = [1 + 0.01 * turn for turn in range(40)]
    assert ScriptedDevice(lawful, script).measure_all([model])[0].stable
    assert not Exact(lawful, script).measure_all([model])[0].stable
