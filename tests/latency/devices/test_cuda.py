"""Memory, streams, events and graphs through PyCUDA, on a real GPU."""

import numpy as np
import pytest

import latency
from latency.devices.cuda import Card, Gpu, Graph, require_gpu

pytestmark = pytest.mark.gpu

COUNT = 1 << 24


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    pytest.importorskip("pycuda", reason="needs PyCUDA")
    try:
        require_gpu("trt")
    except latency.DeviceUnavailable as error:
        pytest.skip(str(error))
    return Gpu()


@pytest.fixture
def copying(gpu: Gpu):
    """A stream, two arrays resident on the GPU, and what puts a copy of one into the other on the stream."""
    with gpu.active():
        stream = gpu.driver.Stream()
        source, target = (gpu.resident(np.full(COUNT, value, np.float32)) for value in (1, 2))
        yield gpu, stream, source, target, lambda: gpu.driver.memcpy_dtod_async(target, source, 4 * COUNT, stream)
        for memory in (source, target):
            memory.free()


def content(gpu: Gpu, memory) -> np.ndarray:
    array = np.empty(COUNT, np.float32)
    gpu.driver.memcpy_dtoh(array, memory)
    return array


def test_a_graph_replays_what_was_recorded_and_recording_does_nothing(copying) -> None:
    gpu, stream, source, target, copy = copying
    graph = Graph(stream, copy)
    stream.synchronize()
    assert (content(gpu, target) == 2).all()
    for value in (3, 4):
        gpu.driver.memcpy_htod(source, np.full(COUNT, value, np.float32))
        graph.launch()
        stream.synchronize()
        assert (content(gpu, target) == value).all()
    graph.close()


def test_the_gpus_clock_counts_launches(copying) -> None:
    """128 MiB are read and written in some 30 µs at the least, on the fastest memory there is."""
    gpu, stream, _, _, copy = copying
    graph = Graph(stream, copy)
    gpu.elapsed_ms(stream, graph.launch, 20)
    assert 0.01 < gpu.elapsed_ms(stream, graph.launch, 20) < 100
    graph.close()


def test_an_error_while_recording_leaves_the_stream_usable(copying) -> None:
    gpu, stream, _, target, copy = copying

    def broken() -> None:
        copy()
        raise latency.MeasurementError("stopped")

    with pytest.raises(latency.MeasurementError, match="stopped"):
        Graph(stream, broken)
    copy()
    stream.synchronize()
    assert (content(gpu, target) == 1).all()


def test_what_cannot_be_recorded_is_an_error(copying) -> None:
    """Synchronising waits for what a graph has not begun."""
    _, stream, _, _, copy = copying
    with pytest.raises(latency.MeasurementError, match=r"the GPU refuses|driver's"):
        Graph(stream, lambda: (copy(), stream.synchronize()))


def test_memory_that_is_not_there_is_an_error(gpu: Gpu) -> None:
    with pytest.raises(latency.MeasurementError, match="the GPU refuses"), gpu.active():
        gpu.driver.mem_alloc(1 << 50)


def test_the_primary_context_is_shared_with_torch(gpu: Gpu) -> None:
    """What PyCUDA wrote, torch can read at its address."""
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(8, device="cuda")
    torch.cuda.synchronize()
    with gpu.active():
        memory = gpu.resident(np.arange(8, dtype=np.float32))
        gpu.driver.memcpy_dtod(tensor.data_ptr(), memory, 32)
        memory.free()
    assert tensor.tolist() == list(range(8))


def test_the_card_says_what_it_is(gpu: Gpu) -> None:
    card, device = Card.first(), gpu.driver.Device(0)
    assert card.name == device.name()
    assert card.capability == device.compute_capability()
    assert card.pci_bus_id == device.pci_bus_id()
