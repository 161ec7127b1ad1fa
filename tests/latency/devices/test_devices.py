"""The contract of every device; the law-abiding test device has to keep it too."""

import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

import latency
from latency.build import ONCE, build_table
from latency.coverage import quick_plan
from latency.devices.clock import PATIENCE
from latency.devices.core import CoreMonitor
from latency.graph.kernels import find_kernels
from latency.measuring.measurement import Measurement
from latency.measuring.table import LatencyTable

ON_A_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("trt", "ort-cuda", "torch-cuda", "torch-cuda-compiled")]


SHORT = replace(ONCE, profiled_runs=8)


@pytest.fixture(params=["ort", "ort int8", "torch", "torch-compiled", f"ort@:{sys.executable}", "lawful", *ON_A_GPU])
def device(request, lawful):
    if request.param == "lawful":
        return lawful
    name, _, precision = request.param.partition(" ")
    try:
        return latency.open_device(name, precision=precision or "fp32")
    except latency.DeviceUnavailable as error:
        if request.node.get_closest_marker("gpu"):
            pytest.skip(str(error))
        raise


def test_measurement_is_whole(device, tiny_network) -> None:
    model = tiny_network.onnx(tiny_network.max_widths)
    measured = device.measure(model)
    assert isinstance(measured, Measurement)
    assert measured.latency_ms > 0
    assert measured.rounds_ms.ndim == 1
    assert len(measured.rounds_ms) >= 8
    assert measured.rounds_ms.min() <= measured.latency_ms <= np.median(measured.rounds_ms)
    placed = find_kernels(onnx.load_from_string(model))
    assert measured.kernels["type"].tolist() == [one.kernel.type for one in placed]
    assert measured.kernels["cout"].tolist() == [one.kernel.cout for one in placed]
    np.testing.assert_allclose(measured.kernels["ms"].sum(), measured.latency_ms)
    assert "ms" in repr(measured)


def test_several_models_are_measured_together_in_their_order(device, tiny_network, rng, random_widths) -> None:
    structures = random_widths(tiny_network, rng, 3)
    measured = device.measure_all([tiny_network.onnx(widths) for widths in structures])
    assert [one.kernels["cout"].iloc[0] for one in measured] == [widths[0] for widths in structures]


def test_fingerprint_is_text_and_stays(device) -> None:
    fingerprint = device.fingerprint()
    assert fingerprint == device.fingerprint()
    assert fingerprint["device"] == device.name
    assert all(isinstance(value, str) and value for value in fingerprint.values())


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "fp32") for name in ("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "resnet18")),
        *((name, precision) for name in ("tinynet:tiny", "tinynet:tiny_convnext") for precision in ("fp32", "int8")),
        *((name, "int8") for name in ("tinynet:gates", "tinynet:halves")),
    ],
)
def test_ort_names_every_kernel_it_runs(name: str, precision: str, traced, rng, random_widths) -> None:
    """Odd widths and aligned ones, the unpruned network's, fuse differently; no kernel with weights may come out empty."""
    net = traced(name)
    structures = [*random_widths(net, rng, 1), net.max_widths]
    models = [net.onnx(widths) for widths in structures]
    for measured in latency.open_device("ort", precision=precision).measure_all(models, SHORT):
        kernels = measured.kernels
        weighted = kernels["type"].str.match("conv|depthwise|gemm|matmul|layernorm|gelu")
        assert (kernels["ms"][weighted] > 0).all()
        others = kernels[kernels["type"] != "transpose"]  # which becomes part of a layout conversion beside it
        assert (others["ms"] == 0).sum() <= 2


@pytest.mark.parametrize(("name", "precision"), [("ort", "fp32"), ("ort", "int8"), ("torch", "fp32")])
@pytest.mark.parametrize("model", [b"", b"not a model"])
def test_what_is_no_model_is_refused(name: str, precision: str, model: bytes) -> None:
    with pytest.raises(latency.MeasurementError):
        latency.open_device(name, precision=precision).measure(model)


@pytest.mark.parametrize("name", ["torch", "torch-compiled"])
def test_torchs_own_settings_are_left_as_they_were(name: str, tiny_network) -> None:
    torch.set_num_threads(2)
    latency.open_device(name, threads=1).measure(tiny_network.onnx(tiny_network.max_widths))
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()


def test_unknown_and_unavailable_devices_say_what_to_do() -> None:
    with pytest.raises(latency.DeviceUnavailable, match=r"expected one of: ort, .*trt"):
        latency.open_device("npu")
    with pytest.raises(latency.DeviceUnavailable, match="expected 1 to"):
        latency.open_device("ort", threads=0)


def test_a_device_elsewhere_is_known_by_its_table(lawful, tiny_network, tmp_path) -> None:
    table = build_table(lawful, tiny_network, quick_plan(tiny_network, 10), LatencyTable.open(tmp_path, lawful.fingerprint()))
    device = latency.open_device(table.path.name, lut=tmp_path)
    assert device.fingerprint() == lawful.fingerprint()
    assert not device.at_hand
    with pytest.raises(latency.DeviceUnavailable, match=r"threads=4 given; the table at .* was measured with 1"):
        latency.open_device(table.path.name, threads=4, lut=tmp_path)
    with pytest.raises(latency.DeviceUnavailable, match="measure where it is, with --device lawful"):
        build_table(device, tiny_network, quick_plan(tiny_network, 12), table)
    assert not table.refused
    table.path.rename(tmp_path / "mine")
    with pytest.raises(latency.TableError, match="give the folder that name"):
        latency.open_device("mine", lut=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(latency.TableError, match="no latency table"):
        latency.open_device("empty", lut=tmp_path)


@pytest.mark.parametrize(("disturbed", "found"), [(1, True), (1000, False)])
def test_ort_repeats_runs_during_which_the_core_was_taken(disturbed: int, found: bool, tiny_network, monkeypatch) -> None:
    """The system's count of preemptions is scripted: it rises during each of the first `disturbed` stretches of runs."""
    monkeypatch.setattr(CoreMonitor, "undisturbed", lambda self: True)
    loaded = latency.open_device("ort").load(tiny_network.onnx(tiny_network.max_widths))
    loaded.profile(1)
    asked = []

    def counted() -> int:
        asked.append(None)
        return min(len(asked) // 2, disturbed)

    monkeypatch.setattr("latency.devices.clock.preemptions", counted)
    times, alone, _ = loaded.times(3)
    loaded.close()
    assert not alone[0]
    assert alone[-1] == found
    assert len(times) > 3
    assert len(asked) // 2 >= (2 if disturbed == 1 else PATIENCE)  # a stretch is 3 runs at most
