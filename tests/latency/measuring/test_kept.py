"""Measurements that are kept: what is in the file is not measured again."""

from pathlib import Path

import pytest
from lawful import LawfulDevice, LawfulModel

import latency
from latency.measuring.kept import KeptMeasurements


class Counting(LawfulDevice):
    """Counts the models it has loaded."""

    loaded = 0

    def load(self, model: bytes) -> LawfulModel:
        self.loaded += 1
        return super().load(model)


def test_what_was_measured_is_found_again(lawful, tiny_network, tmp_path: Path) -> None:
    models = [tiny_network.onnx(tiny_network.nearest_widths(share)) for share in (0.5, 1.0)]
    device, file = Counting(), tmp_path / "results" / "v.part"
    first = KeptMeasurements(device, file).measured("two", models)
    assert device.loaded == 2
    assert [one.latency_ms for one in first] == pytest.approx([lawful.load(model).total for model in models])
    kept = KeptMeasurements(device, file)
    assert kept.measured("two", models) == first
    assert device.loaded == 2
    kept.measured("two, again", models)
    assert device.loaded == 4
    kept.discard()
    assert not file.exists()
    KeptMeasurements(device, file).measured("two", models)
    assert device.loaded == 6


def test_without_a_file_nothing_is_kept(tiny_network) -> None:
    device = Counting()
    for _ in range(2):
        KeptMeasurements(device).measured("it", [tiny_network.onnx(tiny_network.max_widths)])
    assert device.loaded == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"two": 1}', '{"two": [[1.5]]}', '{"two": [["x", true]]}'])
def test_a_spoilt_file_is_refused(content: str, lawful, tmp_path: Path) -> None:
    (tmp_path / "v.part").write_text(content)
    with pytest.raises(latency.TableError, match=r"v.part' cannot be read .*; remove it"):
        KeptMeasurements(lawful, tmp_path / "v.part")
