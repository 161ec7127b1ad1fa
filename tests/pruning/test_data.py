"""Data: three disjoint sets, the same every time, from every source."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pruning.data import load_data
from pruning.images import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_digits_are_split_the_same_way_every_time(digits) -> None:
    again = load_data("digits", 16)
    assert torch.equal(digits.subval.pixels, again.subval.pixels)
    assert len(digits.train) + len(digits.subval) + len(digits.test) == 1797
    assert digits.train.pixels.shape[1:] == (3, 16, 16)
    assert digits.classes == 10
    counts = torch.bincount(digits.subval.labels)
    assert counts.min() >= 20
    assert counts.max() <= 50


def test_sub_validation_is_cut_from_training(digits) -> None:
    seen = {p.numpy().tobytes() for p in digits.train.pixels}
    assert sum(p.numpy().tobytes() in seen for p in digits.subval.pixels) <= 3  # identical scans exist in the data


def test_normalised_training_images_have_mean_0_and_deviation_1(digits) -> None:
    images = digits.normalised(digits.train.pixels)
    assert images.mean().abs() < 0.02
    assert images.std() == pytest.approx(1, abs=0.02)


def test_digits_are_not_mirrored(digits) -> None:
    pixels = torch.zeros(256, 3, 16, 16, dtype=torch.uint8)
    pixels[:, :, 8, 4] = 255
    spots = digits.augmented(pixels, torch.Generator().manual_seed(0))[:, 0].flatten(1).argmax(1)
    assert set((spots % 16).tolist()) == {2, 3, 4, 5, 6}


def write_npz(path: Path, count: int, labels: np.ndarray) -> None:
    files = []
    for index in range(count):
        buffer = io.BytesIO()
        Image.fromarray(np.full((12, 12, 3), 20 * (index % 10), np.uint8)).save(buffer, "JPEG")
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    offset = np.cumsum([0, *map(len, files)])
    np.savez(path, jpeg=np.concatenate(files), offset=offset, label=labels.astype(np.uint8))


def test_a_folder_of_npz_files(tmp_path) -> None:
    for part, count in (("train", 60), ("test", 20)):
        write_npz(tmp_path / f"my_{part}.npz", count, np.arange(count) % 10)
    data = load_data(str(tmp_path))
    assert (len(data.train), len(data.subval), len(data.test)) == (50, 10, 20)
    assert data.size == 32
    for image, label in zip(data.test.pixels, data.test.labels, strict=True):
        assert abs(float(image.float().mean()) - 20 * int(label)) < 3


@pytest.mark.skipif(not (SHARED / "cifar10_test.npz").exists(), reason="CIFAR-10 is not in ../shared/data")
def test_cifar10_npz(tmp_path) -> None:
    (tmp_path / "a_train.npz").symlink_to(SHARED / "cifar10_test.npz")
    (tmp_path / "a_test.npz").symlink_to(SHARED / "cifar10_test.npz")
    data = load_data(str(tmp_path))
    assert (len(data.train), len(data.subval), len(data.test)) == (8000, 2000, 10_000)
    assert torch.bincount(data.subval.labels).tolist() == [200] * 10
    assert data.train.pixels.shape[1:] == (3, 32, 32)


@pytest.mark.parametrize("name", ["mnist9", "/no/such/folder"])
def test_unknown_data(name: str) -> None:
    with pytest.raises(DataError, match="expected digits, cifar10, or a folder"):
        load_data(name)


def test_broken_and_incomplete_folders(tmp_path) -> None:
    with pytest.raises(DataError, match="neither"):
        load_data(str(tmp_path))
    (tmp_path / "x_train.npz").write_bytes(b"PK broken")
    with pytest.raises(DataError, match="cannot be read"):
        load_data(str(tmp_path))
    np.savez(tmp_path / "x_train.npz", images=np.zeros(3))
    with pytest.raises(DataError, match="cannot be read"):
        load_data(str(tmp_path))
    write_npz(tmp_path / "x_train.npz", 20, np.arange(20) % 10)
    with pytest.raises(DataError, match=r"0 files named \*test.npz"):
        load_data(str(tmp_path))
    write_npz(tmp_path / "x_test.npz", 20, np.arange(20) % 12)
    with pytest.raises(DataError, match="test images of class 11"):
        load_data(str(tmp_path))
    write_npz(tmp_path / "x_train.npz", 20, np.arange(20) % 19)
    with pytest.raises(DataError, match="at least two"):
        load_data(str(tmp_path))
    write_npz(tmp_path / "x_train.npz", 20, np.arange(20) % 2 * 2)  # none of class 1
    with pytest.raises(DataError, match="at least two"):
        load_data(str(tmp_path))
    with pytest.raises(DataError, match="at least 8"):
        load_data("digits", 4)
