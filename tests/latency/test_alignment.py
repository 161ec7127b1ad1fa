"""The alignment probe, on devices whose blocks are known."""

import json

import numpy as np
import pytest
from lawful import LawfulDevice, LawfulModel

import latency
from latency.alignment import PROBES, WIDTHS, alignment_of, probe, proposed
from latency.devices import Times
from latency.graph.kernels import Kernel


def padded(block: int):
    """A device that computes whole blocks of channels, and is slower where some of one are left over."""

    def ms(kernel: Kernel) -> float:
        cin, cout = (int(np.ceil(size / block) * block) for size in (kernel.cin, kernel.cout))
        slower = 1.1 if kernel.cout % block else 1.0
        return 1e-6 * slower * (cin if kernel.type.startswith("conv") else 10) * cout * kernel.out_height * kernel.out_width

    return ms


@pytest.mark.parametrize("block", [1, 8, 16, 32])
def test_the_block_of_a_device_is_found(block: int, lawful_type) -> None:
    assert proposed(probe(lawful_type(law=padded(block)))) == block


def test_a_finer_multiple_that_is_fast_by_chance_is_not_proposed() -> None:
    assert proposed({1: 0.7, 2: 0.0, 4: 0.3, 8: 0.04, 16: 0.0, 32: 0.0}) == 8
    assert proposed({1: 0.7, 2: 0.7, 4: 0.3, 8: 0.2, 16: 0.2, 32: 0.1}) == 32


class Disturbed(LawfulDevice):
    """In every probe a neighbour is beside all runs, and the models of other widths take half as long again."""

    def __init__(self, *slow: tuple[int, ...]) -> None:
        super().__init__(law=padded(8))
        self.slow, self.loaded = slow, 0

    def load(self, model: bytes) -> LawfulModel:
        probe, index = divmod(self.loaded, len(WIDTHS))
        self.loaded += 1
        loaded = super().load(model)
        loaded.total *= 1.5 if WIDTHS[index] in self.slow[min(probe, len(self.slow) - 1)] else 1.0
        loaded.times = lambda runs: Times(np.full(runs, loaded.total), np.full(runs, False))
        return loaded


@pytest.mark.parametrize(
    ("slow", "probes"),
    [
        ([(112, 144)], PROBES),  # the same disturbance all along cannot be told from a slow width
        ([(112, 144), (112, 144), ()], 4),  # though multiples of 8 that are none of 16 are fast
        ([(112, 144), ()], 3),
        ([(112, 144), (104, 120, 136, 152), (112, 144)], 3),
        ([(100,), ()], 2),
    ],
)
def test_a_disturbed_probe_is_repeated_until_two_in_a_row_agree(slow, probes: int, monkeypatch) -> None:
    monkeypatch.setattr("latency.measuring.protocol.IN_VAIN_S", 0)
    device = Disturbed(*slow)
    assert proposed(probe(device)) == (32 if slow == [(112, 144)] else 8)
    assert device.loaded == probes * len(WIDTHS)


def test_an_undisturbed_probe_is_believed_at_once(monkeypatch) -> None:
    device = LawfulDevice(law=padded(8))
    loaded = []
    monkeypatch.setattr(device, "load", lambda model, load=device.load: loaded.append(model) or load(model))
    assert proposed(probe(device)) == 8
    assert len(loaded) == len(WIDTHS)


def test_the_result_is_kept_beside_the_table(lawful_type, tmp_path, monkeypatch) -> None:
    device = lawful_type(law=padded(8))
    assert alignment_of(device, tmp_path) == 8
    stored = json.loads(next(tmp_path.glob("*/alignment.json")).read_text())
    assert stored["overheads"]["1"] > 0.02 >= abs(stored["overheads"]["8"])
    monkeypatch.setattr(device, "measure_all", lambda *args: pytest.fail("measured again"))
    assert alignment_of(device, tmp_path) == 8


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_measured(lawful_type, tmp_path, monkeypatch) -> None:
    device = lawful_type()
    monkeypatch.setattr(device, "measure_all", lambda *args: pytest.fail("measured first"))
    (tmp_path / "file").write_text("")
    with pytest.raises(latency.TableError, match="cannot write"):
        alignment_of(device, tmp_path / "file")


@pytest.mark.parametrize("content", ["", "{}", "[8]", '{"alignment": "fast"}'])
def test_a_spoilt_file_is_a_clear_error(content: str, lawful, tmp_path) -> None:
    alignment_of(lawful, tmp_path)
    next(tmp_path.glob("*/alignment.json")).write_text(content)
    with pytest.raises(latency.TableError, match="remove it"):
        alignment_of(lawful, tmp_path)


def test_the_real_device_has_one(tmp_path) -> None:
    assert alignment_of(latency.open_device("ort"), tmp_path) in (1, 2, 4, 8, 16, 32)
