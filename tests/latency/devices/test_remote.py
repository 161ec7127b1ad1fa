"""Devices on another host, which here is another Python of this machine: a real one, that has nothing of ours."""

import os
import signal
import sys
from pathlib import Path

import execnet
import numpy as np
import pandas as pd
import pytest

import latency
from latency.build import build_table, expected_s
from latency.coverage import quick_plan
from latency.devices.remote import RemoteDevice
from latency.devices.worker import packed, unpacked
from latency.measuring.fingerprint import Conditions, GpuState
from latency.measuring.measurement import Measurement, Protocol
from latency.measuring.table import LatencyTable

HERE = f":{sys.executable}"


@pytest.fixture
def without(tmp_path: Path, monkeypatch):
    """Packages that the other Python does not have."""

    def hidden(*names: str) -> None:
        for name in names:
            (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\")")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return hidden


def test_what_is_measured_there_goes_into_the_table_of_that_device(without, tiny_network, tmp_path: Path) -> None:
    without("torch", "sklearn", "pyarrow", "optuna", "typer", "search", "pruning")
    there = latency.open_device(f"ort@{HERE}")
    here = latency.open_device("ort")
    assert there.fingerprint() == here.fingerprint()
    plan = quick_plan(tiny_network, 10)
    assert expected_s(there, tiny_network, plan) > 0
    table = build_table(there, tiny_network, plan, LatencyTable.open(tmp_path / "lut", there.fingerprint()))
    assert table.count(tiny_network) == len(plan)
    assert (table.structures["core_ms"] > 0).all()
    assert latency.load_predictor(table.path).predict_widths(tiny_network, plan).min() > 0
    own, wall = there.by_the_wall_ms(tiny_network.onnx(plan[0]))
    assert 0.2 < own / wall < 5


def test_the_protocol_goes_along(tiny_network) -> None:
    device = latency.open_device(f"ort@{HERE}")
    (measured,) = device.measure_all([tiny_network.onnx(tiny_network.max_widths)], Protocol(rounds=6, revisits=0))
    assert len(measured.rounds_ms) == 6


def test_what_is_refused_there_is_refused_here(tiny_network) -> None:
    device = latency.open_device(f"ort@{HERE}")
    with pytest.raises(latency.MeasurementError, match="ONNX Runtime refuses the model"):
        device.measure(b"not a model")
    assert device.measure(tiny_network.onnx(tiny_network.max_widths)).latency_ms > 0


def test_what_keeps_a_device_from_being_opened_there_is_said(without) -> None:
    with pytest.raises(latency.DeviceUnavailable, match="threads=0 given"):
        latency.open_device(f"ort@{HERE}", threads=0)
    with pytest.raises(latency.DeviceUnavailable, match="fp16"):
        latency.open_device(f"ort@{HERE}", precision="fp16")
    without("onnx")
    with pytest.raises(latency.DeviceUnavailable, match=r"No module named 'onnx'; expected Python .* numpy scipy pandas onnx"):
        latency.open_device(f"ort@{HERE}")


@pytest.mark.parametrize("place", [":no-such-python", "nowhere.invalid", "nowhere.invalid:/opt/python"])
def test_a_host_that_does_not_answer_is_named(place: str) -> None:
    with pytest.raises(latency.DeviceUnavailable, match=rf"'ort@{place}': no Python answers there .* -V` works"):
        latency.open_device(f"ort@{place}")


def test_a_device_that_nobody_holds_leaves_no_process_behind() -> None:
    device = latency.open_device(f"ort@{HERE}")
    gateway = execnet.default_group[-1]
    assert gateway in execnet.default_group
    del device
    assert gateway not in execnet.default_group


def test_a_lost_connection_refuses_no_structure(tiny_network, tmp_path: Path) -> None:
    device = latency.open_device(f"ort@{HERE}")
    table = LatencyTable.open(tmp_path, device.fingerprint())
    worker = execnet.default_group[-1].remote_exec("import os; channel.send(os.getpid())").receive()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(latency.DeviceUnavailable, match="answers no more"):
        build_table(device, tiny_network, quick_plan(tiny_network, 4), table)
    assert not table.refused


def test_measurements_survive_the_way() -> None:
    kernels = pd.DataFrame({"type": ["conv3x3s1+relu"], "cin": [3], "ms": [0.25]})
    for gpu in (None, GpuState(1980.0, None, "power")):
        measured = Measurement(
            0.25, float("nan"), kernels, np.array([0.3, 0.25]), np.full(2, np.nan), False, Conditions(1.0, 0.5, gpu)
        )
        arrived = unpacked(execnet.loads(execnet.dumps(packed(measured))))
        pd.testing.assert_frame_equal(arrived.kernels, kernels)
        np.testing.assert_equal(arrived.rounds_ms, measured.rounds_ms)
        np.testing.assert_equal(arrived.rounds_core_ms, measured.rounds_core_ms)
        assert (arrived.latency_ms, arrived.stable, arrived.conditions) == (0.25, False, measured.conditions)


def test_only_devices_are_looked_for_elsewhere() -> None:
    with pytest.raises(latency.DeviceUnavailable, match="npu@jetson' is unknown"):
        latency.open_device("npu@jetson")
    assert isinstance(latency.open_device(f"ort@{HERE}"), RemoteDevice)
