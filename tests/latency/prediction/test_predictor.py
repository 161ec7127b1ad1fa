"""Prediction, on a device whose law is known: what is fitted can be checked against the truth."""

import subprocess
import sys
import warnings

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import latency
from latency.build import build_table
from latency.coverage import quick_plan
from latency.graph.kernels import find_kernels
from latency.graph.precision import lowered
from latency.measuring.kept import KeptMeasurements
from latency.measuring.table import LatencyTable
from latency.prediction.calibration import MonotoneLink
from latency.prediction.predictor import LatencyPredictor
from latency.prediction.regression import Level
from latency.validation import agreement, differences_summary, measured_against_predicted, one_gene_differences, summary
from pruning.networks import load


def cached(total: float) -> float:
    """A device that runs small networks faster than the sum of their kernels."""
    return total * (0.6 + 0.4 * total / (total + 0.05))


@pytest.fixture(scope="module")
def nonlinear(lawful_type):
    return lawful_type(cached)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory, nonlinear, tiny_network) -> LatencyPredictor:
    table = LatencyTable.open(tmp_path_factory.mktemp("lut"), nonlinear.fingerprint())
    return LatencyPredictor(build_table(nonlinear, tiny_network, quick_plan(tiny_network, 120), table))


def truth(device, network, structures: np.ndarray) -> np.ndarray:
    return np.array([device.load(network.onnx(widths)).total for widths in structures])


def test_unseen_structures_are_predicted_within_a_few_per_cent(predictor, nonlinear, tiny_network, rng, random_widths) -> None:
    structures = random_widths(tiny_network, rng, 200)
    error = predictor.predict_widths(tiny_network, structures) / truth(nonlinear, tiny_network, structures) - 1
    assert np.abs(error).mean() < 0.02
    assert np.abs(error).max() < 0.10


def test_structures_that_were_disturbed_without_showing_it_are_left_out(
    predictor, nonlinear, tiny_network, rng, random_widths
) -> None:
    rows = predictor.table.rows
    slowed = np.where(np.arange(len(rows)) % 12 == 5, 1.25, 1.0)
    latencies = pa.array(rows["latency_ms"].to_numpy() * slowed)
    spoilt = rows.set_column(rows.schema.get_field_index("latency_ms"), "latency_ms", latencies)
    table = LatencyTable(predictor.table.path, predictor.table.fingerprint, spoilt)
    structures = random_widths(tiny_network, rng, 200)
    error = LatencyPredictor(table).predict_widths(tiny_network, structures) / truth(nonlinear, tiny_network, structures) - 1
    assert np.abs(error).mean() < 0.025


def test_the_band_covers_what_it_says(predictor, nonlinear, tiny_network) -> None:
    rows = measured_against_predicted(KeptMeasurements(nonlinear), tiny_network, predictor, samples=150, seed=5)
    figures = summary(rows)
    assert len(rows) == 150
    assert 0.75 <= figures["predictor"]["band_coverage"] <= 1.0
    assert figures["predictor"]["mape"] < 0.02
    assert figures["predictor"]["within_5"] > figures["macs"]["within_5"]


def test_all_ways_to_predict_agree(predictor, tiny_network, tiny_module, rng, random_widths, tmp_path) -> None:
    structures = random_widths(tiny_network, rng, 5)
    by_tables = predictor.predict_widths(tiny_network, structures)
    by_onnx = [predictor.predict(tiny_network.onnx(widths)).latency_ms for widths in structures]
    np.testing.assert_allclose(by_tables, by_onnx)
    np.testing.assert_allclose(by_tables, predictor._summed(tiny_network, structures).latency_ms)
    full = predictor.predict(tiny_module, input_shape=(1, 3, 16, 16))
    assert full.latency_ms == pytest.approx(predictor.predict_widths(tiny_network, tiny_network.max_widths)[0])
    (tmp_path / "net.onnx").write_bytes(tiny_network.onnx(tiny_network.max_widths))
    assert predictor.predict(tmp_path / "net.onnx").latency_ms == pytest.approx(full.latency_ms)
    assert full.low_ms <= full.latency_ms <= full.high_ms
    assert full.kernels["ms"].sum() == pytest.approx(full.latency_ms)
    assert set(full.kernels["source"]) == {"measured"}


def test_a_device_with_a_fixed_cost_a_run(lawful_type, tiny_network, tmp_path, rng, random_widths) -> None:
    device = lawful_type(lambda total: total + 0.05)
    table = LatencyTable.open(tmp_path, device.fingerprint())
    predictor = LatencyPredictor(build_table(device, tiny_network, quick_plan(tiny_network, 80), table))
    structures = random_widths(tiny_network, rng, 20)
    by_tables = predictor.predict_widths(tiny_network, structures)
    np.testing.assert_allclose(by_tables, [predictor.predict(tiny_network.onnx(w)).latency_ms for w in structures])
    np.testing.assert_allclose(by_tables, truth(device, tiny_network, structures), rtol=0.05)


def test_widths_off_the_choices_are_predicted_too(predictor, tiny_network) -> None:
    between = np.array([[9, 17, 5, 30, 11], [16, 32, 8, 48, 24]])
    near = np.array([[8, 16, 4, 28, 12], [16, 32, 8, 48, 24]])
    odd, even = predictor.predict_widths(tiny_network, between), predictor.predict_widths(tiny_network, near)
    assert odd[1] == pytest.approx(even[1])
    assert odd[0] == pytest.approx(even[0], rel=0.3)


def test_a_kernel_nothing_covers_raises_instead_of_costing_nothing(predictor) -> None:
    with pytest.raises(latency.PredictionError, match="no kernel of type softmax"):
        predictor.predict(unlike(), input_shape=(1, 3, 18, 18))
    network = latency.trace(unlike(), (1, 3, 18, 18))
    for how in (predictor.predict_widths, predictor.predict_band, predictor.deviation):
        with pytest.raises(latency.PredictionError, match="softmax"):
            how(network, network.max_widths)


def unlike() -> nn.Module:
    """A window and an operation that no table of the tiny network holds."""
    return nn.Sequential(nn.Conv2d(3, 8, 7, stride=3), nn.Softmax(1), nn.Flatten(), nn.Linear(8 * 16, 4))


def test_a_changed_graph_is_no_longer_that_network(predictor, tiny_network) -> None:
    model = onnx.load_from_string(tiny_network.onnx(tiny_network.max_widths))
    before = predictor.predict(model.SerializeToString())
    last = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Reshape", [last, "shape"], ["more"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 10]), "shape"))
    model.graph.output[0].name = "more"
    after = predictor.predict(model.SerializeToString())
    assert len(after.kernels) == len(before.kernels) + 1
    assert after.high_ms / after.low_ms > before.high_ms / before.low_ms


def test_nor_is_one_of_as_many_other_kernels(predictor, tiny_network) -> None:
    model = onnx.load_from_string(tiny_network.onnx(tiny_network.max_widths))
    before = predictor.predict(model.SerializeToString())
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"
    after = predictor.predict(model.SerializeToString())
    assert len(after.kernels) == len(before.kernels)
    assert after.high_ms / after.low_ms > before.high_ms / before.low_ms


def test_a_model_that_states_another_precision_than_the_table_is_refused(predictor, nonlinear, tiny_network, tmp_path) -> None:
    model = tiny_network.onnx(tiny_network.max_widths)
    for stated in ("int8", "fp16"):
        with pytest.raises(
            latency.PredictionError, match=rf"computes in {stated}, .* in fp32.*build_lut.py --precision {stated}"
        ):
            predictor.predict(lowered(model, stated))
    table = LatencyTable.open(tmp_path, nonlinear.fingerprint() | {"precision": "int8"})
    in_int8 = LatencyPredictor(build_table(nonlinear, tiny_network, quick_plan(tiny_network, 40), table))
    assert in_int8.predict(lowered(model, "int8")).latency_ms == pytest.approx(in_int8.predict(model).latency_ms)
    unsigned = onnx.load_from_string(lowered(model, "int8"))
    for tensor in unsigned.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            tensor.data_type = onnx.TensorProto.UINT8
    with pytest.raises(latency.PredictionError, match=r"computes with weights in uint8.*with weights in int8"):
        in_int8.predict(unsigned.SerializeToString())


def test_a_guess_says_that_it_is_one(predictor) -> None:
    with pytest.warns(UserWarning, match="softmax"):
        guess = predictor.predict(unlike(), input_shape=(1, 3, 18, 18), on_missing="warn")
    assert guess.kernels["source"].tolist()[:2] == ["guessed", "guessed"]
    assert (guess.kernels["ms"] > 0).all()
    near = predictor.predict(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Flatten(), nn.Linear(8 * 81, 4)), (1, 3, 18, 18))
    assert guess.high_ms / guess.low_ms > near.high_ms / near.low_ms
    with pytest.raises(latency.PredictionError, match="'raise' or 'warn'"):
        predictor.predict(unlike(), input_shape=(1, 3, 18, 18), on_missing="ignore")


def test_another_window_of_a_known_operation_is_a_guess_too(predictor) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 7, stride=3), nn.Flatten(), nn.Linear(8 * 16, 4))
    guess = predictor.predict(module, input_shape=(1, 3, 18, 18))
    assert guess.kernels["source"].tolist()[0] == "guessed"
    near = predictor.predict(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Flatten(), nn.Linear(8 * 81, 4)), (1, 3, 18, 18))
    assert guess.high_ms / guess.low_ms > near.high_ms / near.low_ms


@pytest.mark.parametrize("opset", [13, 17])
def test_models_of_the_older_exporter_are_predicted(opset: int, predictor, tiny_module) -> None:
    """It writes a global pooling and a flattening by other names, and shapes that the graph computes."""
    import io

    class Chunked(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = super().forward(x).chunk(2, 1)
            return first + second

    for module in (tiny_module, Chunked(tiny_module.stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))):
        written = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module.eval(), (torch.zeros(1, 3, 16, 16),), written, dynamo=False, opset_version=opset)
        kinds = [one.kernel.type for one in find_kernels(onnx.load_from_string(written.getvalue()))]
        assert not {"globalaveragepool", "flatten", "shape"} & set(kinds)
    with pytest.warns(UserWarning, match="slice"):
        assert predictor.predict(written.getvalue(), on_missing="warn").latency_ms > 0


def test_onnx_files_of_an_older_opset_are_predicted(predictor, nonlinear) -> None:
    """Opset 13, made by hand: the axes of ReduceMean were an attribute then, and names are anybody's."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {"w": (16, 3, 3, 3), "b": (16,), "fc": (10, 16), "bias": (10,)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["in", "w", "b"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("ReduceMean", ["r"], ["m"], axes=[2, 3], keepdims=0),
            helper.make_node("Gemm", ["m", "fc", "bias"], ["out"], transB=1),
        ],
        "older",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(np.zeros(shape, dtype=np.float32), name) for name, shape in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    predicted = predictor.predict(model)
    assert predicted.kernels["kernel"].tolist()[0] == "conv3x3s2+relu 3→16 @16×16"
    assert predicted.latency_ms == pytest.approx(nonlinear.load(model).total, rel=0.4)


@pytest.mark.parametrize("name", ["tinynet:mixed", "tinynet:halves", "tinynet:gates", "tinynet:hourglass"])
def test_networks_that_concatenate_are_predicted(name: str, lawful, tmp_path, rng, random_widths) -> None:
    """A kernel that reads a concatenation depends on more than two genes; its table is linear in them."""
    network = latency.trace(load(name, num_classes=10), (1, 3, 24, 24), align=2)
    table = LatencyTable.open(tmp_path, lawful.fingerprint())
    predictor = LatencyPredictor(build_table(lawful, network, quick_plan(network, 80), table))
    structures = random_widths(network, rng, 50)
    exact = truth(lawful, network, structures)
    np.testing.assert_allclose(predictor.predict_widths(network, structures), exact, rtol=0.05)
    by_onnx = [predictor.predict(network.onnx(widths)).latency_ms for widths in structures]
    np.testing.assert_allclose(by_onnx, exact, rtol=0.05)


def test_unreadable_models_are_clear_errors(predictor, tmp_path) -> None:
    for model in (b"nonsense", tmp_path / "missing.onnx"):
        with pytest.raises(latency.PredictionError, match="cannot be read as an ONNX model"):
            predictor.predict(model)

    with pytest.raises(latency.PredictionError, match="input_shape"):
        predictor.predict(nn.Identity())


def test_another_network_is_predicted_from_its_onnx_file(predictor, nonlinear, monkeypatch) -> None:
    """No rows of its own: kernels are shared, the calibration is that of all rows. A loaded predictor fits nothing for it."""
    from tinynet import Block, conv_bn

    module = nn.Sequential(
        conv_bn(3, 16, 3, 2), nn.ReLU(), Block(16, 24), Block(16, 16), conv_bn(16, 40, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(160, 10),
    )  # fmt: skip
    network = latency.trace(module, (1, 3, 16, 16))
    model = network.onnx(network.max_widths)
    predicted = predictor.predict(model)
    assert predicted.latency_ms == pytest.approx(nonlinear.load(model).total, rel=0.15)
    assert "regressed" in set(predicted.kernels["source"])
    loaded = latency.load_predictor(predictor.table.path)
    monkeypatch.setattr(Level, "__init__", None)
    assert loaded.predict(model).latency_ms == predicted.latency_ms


def test_load_predictor_takes_a_path_or_a_name(predictor) -> None:
    folder = predictor.table.path
    by_path = latency.load_predictor(folder)
    by_name = latency.load_predictor("lawful", root=folder.parent)
    assert by_path.table.fingerprint == by_name.table.fingerprint
    for missing in (folder / "missing", "ort"):
        with pytest.raises(latency.TableError, match="build"):
            latency.load_predictor(missing, root=folder.parent)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30, unique=True), st.floats(0.5, 2.0))
def test_the_link_rises_and_is_inverted_exactly(scores: list[float], power: float) -> None:
    x = np.sort(np.array(scores))
    link = MonotoneLink.fit(x, x**power)
    probe = np.geomspace(x[0] / 10, x[-1] * 10, 50)
    assert (np.diff(link.to_ms(probe)) > 0).all()
    np.testing.assert_allclose(link.to_score(link.to_ms(probe)), probe, rtol=1e-6)


def test_agreement_against_figures_worked_out_by_hand() -> None:
    figures = agreement(np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.04, 1.84, 4.32, 6.0]))
    assert figures["mape"] == pytest.approx((0.04 + 0.08 + 0.08 + 0.25) / 4)
    assert figures["bias"] == pytest.approx(-0.02)
    assert figures["within_5"] == 0.25
    assert figures["within_10"] == 0.75
    assert figures["kendall_tau"] == 1.0


def test_our_onnx_says_which_network_it_is_of(tiny_network) -> None:
    model = onnx.load_from_string(tiny_network.onnx(tiny_network.max_widths))
    assert {entry.key: entry.value for entry in model.metadata_props}["milliprune_signature"] == tiny_network.signature


def test_importing_latency_loads_nothing_heavy() -> None:
    heavy = ("torch", "sklearn", "onnxruntime", "onnx", "pandas", "numpy", "tensorrt")
    code = f"import sys, latency, latency.devices; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_differences_of_one_gene_are_measured_without_the_profiler(predictor, nonlinear, tiny_network) -> None:
    rows = one_gene_differences(KeptMeasurements(nonlinear), tiny_network, predictor, samples=12, seed=0)
    assert len(rows) == 12
    assert (rows["wide"] > rows["narrow"]).all()
    figures = differences_summary(rows)
    assert figures["predicted"]["of_latency"] < 0.02
    assert figures["predicted"]["correlation"] > 0.95


def test_isolated_kernels_of_an_additive_device_add_up(lawful, tiny_network, rng, random_widths) -> None:
    from latency.isolated import isolated_sums

    models = [tiny_network.onnx(widths) for widths in random_widths(tiny_network, rng, 3)]
    sums = isolated_sums(KeptMeasurements(lawful), models, core_ms=2.0)  # half as fast as it is measured
    np.testing.assert_allclose(sums, [2 * lawful.load(model).total for model in models])


def test_isolated_kernels_run_on_the_real_device(tiny_network) -> None:
    from latency.isolated import isolated_models

    device = latency.open_device("ort")
    for kernel, alone in isolated_models(tiny_network.onnx(tiny_network.max_widths)):
        measured = device.measure(alone)
        assert measured.kernels["type"].tolist() == [kernel.type]
