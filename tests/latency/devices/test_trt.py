"""What of TensorRT needs no GPU: engines built by its RTX edition, layers mapped to kernels, and every way to fail.

Names of layers are as TensorRT 8.0, 8.5 and 10.16 printed them for their owners' networks in public reports.
"""

import sys
import warnings
from pathlib import Path

import onnx
import pytest

import latency
from latency.devices import cuda, trt_engine
from latency.devices.nvml import GpuMonitor, slowing_reasons
from latency.devices.trt_engine import EngineBuilder, require_capability, tensorrt_library
from latency.devices.trt_layers import nodes_behind, nodes_by_layer

ADA = "SM89"
NETWORKS = "mobilenet_v1 mobilenet_v2 mobilenet_v3_large efficientnet_b0 resnet50 tinynet:small_densenet googlenet".split()


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no engines are built")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_parsed_and_built_at_several_widths(name: str, library, traced, rng, random_widths) -> None:
    net = traced(name)
    builder = EngineBuilder(library, "fp32", capability=ADA)
    for widths in random_widths(net, rng, 2):
        assert len(builder.build(net.onnx(widths))) > net.params(widths)


@pytest.mark.parametrize("precision", trt_engine.PRECISIONS)
@pytest.mark.parametrize("batch", [1, 32])
def test_every_precision_is_built(precision: str, batch: int, library, tiny_module) -> None:
    net = latency.trace(tiny_module, (batch, 3, 16, 16), align=4)
    assert EngineBuilder(library, precision, capability=ADA).build(net.onnx(net.max_widths))


def test_tf32_is_off_unless_asked_for(library) -> None:
    flag = library.BuilderFlag.TF32
    allowed = {one: EngineBuilder(library, one, capability=ADA).config().get_flag(flag) for one in trt_engine.PRECISIONS}
    assert allowed == {"fp32": False, "tf32": True, "fp16": False, "int8": False}


def test_half_precision_halves_the_engine(library, traced) -> None:
    net = traced("resnet18")
    sizes = [len(EngineBuilder(library, one, capability=ADA).build(net.onnx(net.max_widths))) for one in ("fp32", "fp16")]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.1)


def test_timings_are_kept_from_build_to_build(library, tiny_network, tmp_path: Path) -> None:
    kept = tmp_path / "table" / "timing.cache"
    for _ in range(2):
        EngineBuilder(library, "fp32", kept, ADA).build(tiny_network.onnx(tiny_network.max_widths))
        assert kept.stat().st_size > 0
    kept.write_bytes(b"spoilt")
    assert EngineBuilder(library, "fp32", kept, ADA).build(tiny_network.onnx(tiny_network.max_widths))


@pytest.mark.parametrize("model", [b"no model", b""])
def test_what_is_no_model_is_refused(model: bytes, library) -> None:
    with pytest.raises(latency.MeasurementError, match="refuses the model"):
        EngineBuilder(library, "fp32", capability=ADA).build(model)


def test_an_operation_the_parser_does_not_know_is_named(library, tiny_network) -> None:
    model = onnx.load_from_string(tiny_network.onnx(tiny_network.max_widths))
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Mystery"
    with pytest.raises(latency.MeasurementError, match="operation 'Mystery'"):
        EngineBuilder(library, "fp32", capability=ADA).build(model.SerializeToString())


def test_a_gpu_the_rtx_edition_does_not_know_is_refused_with_a_way_out(library) -> None:
    with pytest.raises(latency.DeviceUnavailable, match=r"NVIDIA H200 \(compute capability 9.0; .*7.5.*12.0.*torch-cuda"):
        require_capability(library, "NVIDIA H200", (9, 0))
    require_capability(library, "NVIDIA L4", (8, 9))


def test_parsed_layers_are_our_kernels(library, tiny_network) -> None:
    """The parser keeps the ONNX nodes' names, on which the mapping of layers to kernels rests."""
    model = tiny_network.onnx(tiny_network.max_widths)
    builder = library.Builder(library.Logger(library.Logger.ERROR))
    network = builder.create_network(0)
    assert library.OnnxParser(network, library.Logger(library.Logger.ERROR)).parse(model)
    order = [node.name for node in onnx.load_from_string(model).graph.node]
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    behind = [nodes_behind(layer.name, order, layer.metadata) for layer in layers]
    assert {name for names in behind for name in names} == set(order)


RESNET = [f"resnet50/conv4_block6_{part}" for part in ("3_conv/Conv2D", "add/add", "out/Relu")]
TAIL = ["Gather_7", "Transpose_7808", "Reshape_7814"]
GOOGLENET = ["conv1/7x7_s2", "pool1/3x3_s2", "conv2/3x3", "loss3/classifier", "prob"]


@pytest.mark.parametrize(
    ("layer", "order", "expected"),
    [
        (" + ".join(RESNET), RESNET, RESNET),
        (f"Reformatting CopyNode for Input Tensor 0 to {RESNET[0]} + {RESNET[2]}", RESNET, []),
        ("Reformatting CopyNode for Output Tensor 0 to {ForeignNode[318...(Unnamed Layer* 4183) [Shuffle]]}", ["318"], []),
        ("conv1 + PWN(re_lu_clip)", ["conv1", "re_lu_clip"], ["conv1", "re_lu_clip"]),
        ("PWN(PWN(/f/Sigmoid), PWN(/f/Mul))", ["/f/Sigmoid", "/f/Mul"], ["/f/Sigmoid", "/f/Mul"]),
        ("PWN(/Tanh)", ["/Tanh"], ["/Tanh"]),
        ("/net/net.0/Gemm + (Unnamed Layer* 4) [ElementWise] + /net/net.1/Relu", ["/net/net.0/Gemm", "/net/net.1/Relu"],
         ["/net/net.0/Gemm", "/net/net.1/Relu"]),
        ("/classifier/classifier.2/Gemm_myl9_1", ["/classifier/classifier.2/Gemm"], ["/classifier/classifier.2/Gemm"]),
        ("{ForeignNode[conv1/7x7_s2...loss3/classifier]}", GOOGLENET, GOOGLENET[:4]),
        ("{ForeignNode[(Unnamed Layer* 3274) [Shuffle]...Transpose_7808 + Reshape_7814]}", TAIL, TAIL[1:]),
        ("__mye165_0_myl9_0", ["a"], []),
        ("reshape_after_/classifier/classifier.2/Gemm", ["/classifier/classifier.2/Gemm"], []),
    ],
)  # fmt: skip
def test_nodes_behind_a_layers_name(layer: str, order: list[str], expected: list[str]) -> None:
    assert list(nodes_behind(layer, order)) == expected


def test_metadata_says_more_than_names() -> None:
    metadata = "[ONNX Layer: node_Conv_390]\x1e[ONNX Layer: node_relu]"
    assert nodes_behind("__myl_Fused_myl0_3", ["node_Conv_390", "node_relu"], metadata) == ("node_Conv_390", "node_relu")
    information = '{"Layers": [{"Name": "x", "Metadata": "[ONNX Layer: node_relu]"}, "node_Conv_390"]}'
    behind = nodes_by_layer(information, ["node_Conv_390", "node_relu"])
    assert behind == {"x": ("node_relu",), "node_Conv_390": ("node_Conv_390",)}


@pytest.fixture
def pynvml():
    return pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: what a card says of itself cannot be read")


@pytest.fixture
def asked(pynvml, monkeypatch) -> GpuMonitor:
    """A monitor that has a card; what the card answers is for the test to say."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByPciBusId", lambda _: "the card")
    return GpuMonitor("0000:01:00.0")


def refusing(error: Exception):
    def answer(*_: object) -> int:
        raise error

    return answer


def test_a_card_that_is_lost_while_measuring_is_said_once(asked, pynvml, monkeypatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", refusing(pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)))
    with pytest.warns(UserWarning, match="slowed samples are not noticed: NVML says: GPU is lost"):
        assert asked.undisturbed()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asked.undisturbed()


def test_a_card_that_does_not_tell_its_clock_is_no_matter(asked, pynvml, monkeypatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", refusing(pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asked.undisturbed()


def test_reasons_that_slow_a_card_are_told_from_those_that_do_not(pynvml) -> None:
    idle, thermal = pynvml.nvmlClocksThrottleReasonGpuIdle, pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    assert slowing_reasons(idle) == set()
    assert slowing_reasons(idle | thermal) == {"HwThermalSlowdown"}


needs_no_gpu = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU: its absence cannot be tested")


@needs_no_gpu
def test_without_a_card_the_monitor_says_so_once_and_measuring_goes_on() -> None:
    with pytest.warns(UserWarning, match="not recorded.*NVML says"):
        monitor = GpuMonitor("0000:00:00.0")
    assert monitor.undisturbed()
    assert monitor.observed().clock_mhz is None


@needs_no_gpu
@pytest.mark.parametrize("name", ["trt", "ort-cuda", "torch-cuda", "torch-cuda-compiled"])
def test_without_a_gpu_every_gpu_device_says_so(name: str) -> None:
    with pytest.raises(latency.DeviceUnavailable, match=f"'{name}' needs an NVIDIA GPU.*--device ort"):
        latency.open_device(name)


@pytest.mark.parametrize(("name", "precision"), [("trt", "fp8"), ("ort", "fp16"), ("torch", "int8"), ("torch-cuda", "int8")])
def test_a_precision_a_device_does_not_offer(name: str, precision: str) -> None:
    with pytest.raises(latency.DeviceUnavailable, match=f"'{precision}' given; device '{name}' measures fp32"):
        latency.open_device(name, precision=precision)


def test_a_missing_or_broken_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(latency.DeviceUnavailable, match="pip install tensorrt"):
        tensorrt_library()

    def broken(name: str) -> None:
        raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(trt_engine, "import_module", broken)
    with pytest.raises(latency.DeviceUnavailable, match=r"does not load \(libcudart.so.13.*this machine's CUDA"):
        tensorrt_library()


@needs_no_gpu
def test_the_driver_is_asked_without_any_package() -> None:
    with pytest.raises((OSError, latency.MeasurementError)):
        cuda.Card.first()
