"""Folders of image files: decoded once into a file that is mapped, by whoever comes first, going on where that stopped."""

import io
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pruning import decoded
from pruning.data import find_data, load_data
from pruning.fit import _batch
from pruning.images import DataError
from pruning.recipe import Recipe
from pruning.workers import Workers


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_images(folder: Path, count: int, *labels: str) -> None:
    """Of random sizes, as JPEG, PNG and grey ones, cats blue and all others red."""
    rng = np.random.default_rng(len(labels))
    for label in labels:
        (folder / label).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 100, (*rng.integers(20, 60, 2), 3), np.uint8)
            pixels[..., 2 if label == "cat" else 0] += 150
            image, suffix = Image.fromarray(pixels), ("png", "jpg")[index % 2]
            (image.convert("L") if index % 5 == 4 else image).save(folder / label / f"{index}.{suffix}")


@pytest.fixture
def pets(tmp_path) -> Path:
    """500 images to train with, 10 to test with."""
    write_images(tmp_path / "pets" / "train", 250, "cat", "dog")
    write_images(tmp_path / "pets" / "val", 5, "cat", "dog")
    return tmp_path / "pets"


def expected(path: Path, size: int) -> np.ndarray:
    """By Pillow alone: the shorter side resized, the middle cropped."""
    image = Image.open(path).convert("RGB")
    short = min(image.size)
    resized = image.resize(
        [size if side == short else int(size * side / short) for side in image.size], Image.Resampling.BILINEAR
    )
    left, top = (round((side - size) / 2) for side in resized.size)
    return np.asarray(resized.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


class Watched:
    """A stage that keeps what it was told, and is left by an error after so many steps."""

    def __init__(self, until: float = float("inf")) -> None:
        self.until, self.told = until, []

    @contextmanager
    def __call__(self, title: str, total: int):
        def update(done: int) -> None:
            self.told.append((title, done, total))
            if done >= self.until:
                raise KeyboardInterrupt

        yield update


def test_every_image_is_decoded_as_pillow_does(pets) -> None:
    data = load_data(str(pets), 24)
    assert (data.name, data.classes, data.size, len(data.train), len(data.subval), len(data.test)) == (
        "pets",
        2,
        24,
        400,
        100,
        10,
    )
    files = sorted((pets / "train").glob("*/*"), key=str)
    wanted = {expected(path, 24).tobytes(): ["cat", "dog"].index(path.parent.name) for path in files}
    assert len(wanted) == 500
    parts = (data.train, data.subval)
    seen = {
        image.numpy().tobytes(): int(label) for part in parts for image, label in zip(part.pixels, part.labels, strict=True)
    }
    assert seen == wanted
    assert torch.bincount(data.subval.labels).tolist() == [50, 50]
    assert [image.numpy().tobytes() for image in data.test.pixels] == [
        expected(path, 24).tobytes() for path in sorted((pets / "val").glob("*/*"), key=str)
    ]
    assert torch.allclose(data.mean, data.train.pixels.double().mean((0, 2, 3)).float() / 255, atol=1e-4)


def test_what_was_decoded_is_neither_decoded_nor_copied_again(pets) -> None:
    first, again = Watched(), Watched()
    images = find_data(str(pets), 24, first).load()
    assert [told for told in first.told if "train" in told[0]] == [("decoding pets-train", done, 500) for done in (0, 256, 500)]
    same = find_data(str(pets), 24, again).load()
    assert not again.told
    assert torch.equal(images.train.pixels, same.train.pixels)
    assert same.train.pixels.untyped_storage().nbytes() == 500 * 3 * 24**2  # with the sub-validation images: a view of the file
    find_data(str(pets), 16, again).load()
    assert len({path.name for path in Path("data/decoded").glob("*.uint8")}) == 4  # two sizes, two parts


def test_interrupted_decoding_goes_on(pets, monkeypatch) -> None:
    whole = load_data(str(pets), 24)
    shutil.rmtree("data")
    with pytest.raises(KeyboardInterrupt):
        find_data(str(pets), 24, Watched(until=256)).load()
    (part,) = Path("data/decoded").glob("*train*.part")
    with part.open("ab") as file:
        file.write(b"half an image")
    rest = Watched()
    data = find_data(str(pets), 24, rest).load()
    assert rest.told[0] == ("decoding pets-train", 256, 500)
    assert torch.equal(data.train.pixels, whole.train.pixels)
    assert torch.equal(data.subval.pixels, whole.subval.pixels)
    assert not list(Path("data/decoded").glob("*.part"))


def test_a_changed_file_is_decoded_anew(pets) -> None:
    before = load_data(str(pets), 24).test.pixels[0].clone()
    first = pets / "val" / "cat" / "0.png"
    Image.new("RGB", (30, 30), (1, 2, 3)).save(first)
    after = load_data(str(pets), 24).test.pixels[0]
    assert after.flatten(1)[:, 0].tolist() == [1, 2, 3]
    assert not torch.equal(before, after)
    os.utime(first, ns=(1, 1))
    again = Watched()
    find_data(str(pets), 24, again).load()
    assert {title for title, *_ in again.told} == {"decoding pets-test"}


def test_processes_that_come_at_once_decode_once(pets) -> None:
    program = (
        "import sys; from contextlib import contextmanager; from pruning.data import find_data\n"
        "@contextmanager\ndef stage(title, total):\n    print(title); yield lambda done: None\n"
        "print(int(find_data(sys.argv[1], 64, stage).load().train.pixels.long().sum()))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(pets)], stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0].split("\n") for process in running]
    assert sorted(line for lines in said for line in lines[:-2]) == ["decoding pets-test", "decoding pets-train"]
    assert said[0][-2] == said[1][-2]


def test_classes_are_told_by_the_names_of_their_folders(tmp_path) -> None:
    write_images(tmp_path / "train", 5, "cat", "dog")
    write_images(tmp_path / "test", 2, "dog")
    assert load_data(str(tmp_path), 24).test.labels.tolist() == [1, 1]
    write_images(tmp_path / "test", 2, "fish")
    with pytest.raises(DataError, match="lacks: fish"):
        load_data(str(tmp_path), 24)


def truncated(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()[: buffer.tell() // 2]


@pytest.mark.parametrize(
    "content", [b"", b"no image", truncated("PNG"), truncated("JPEG"), truncated("WEBP"), truncated("GIF")]
)
def test_all_files_that_are_no_images_are_named(pets, content: bytes) -> None:
    for name in ("x.png", "y.jpg"):
        (pets / "train" / "dog" / name).write_bytes(content)
    with pytest.raises(DataError, match=r"mend or remove them:\n.*dog/x\.png: .*\n.*dog/y\.jpg: "):
        load_data(str(pets), 24)
    assert not list(Path("data/decoded").glob("*train*.part"))
    for name in ("x.png", "y.jpg"):
        (pets / "train" / "dog" / name).unlink()
    assert len(load_data(str(pets), 24).train) == 400


def test_a_broken_file_is_found_again_after_an_interruption(pets) -> None:
    (pets / "train" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(KeyboardInterrupt):
        find_data(str(pets), 24, Watched(until=256)).load()
    with pytest.raises(DataError, match=r"cat/0\.png"):
        load_data(str(pets), 24)


def test_no_room_is_said_before_anything_is_decoded(pets, monkeypatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda folder: usage(500 * 3 * 24**2 - 1))
    watched = Watched()
    with pytest.raises(DataError, match=r"need 0\.0 GB of 'data/decoded', where 0\.0 GB are free; make it a link"):
        find_data(str(pets), 24, watched).load()
    assert not watched.told
    Path("data/decoded").rename("elsewhere")
    Path("data/decoded").write_text("a file")
    with pytest.raises(DataError, match="cannot be decoded to"):
        load_data(str(pets), 24)


def test_images_for_which_a_gpu_has_no_room_go_there_a_batch_at_a_time(pets) -> None:
    """The device "meta" computes nothing but refuses, as a GPU does, what lies elsewhere."""
    data, there = load_data(str(pets), 24), torch.device("meta")
    split = replace(data.to(there), train=replace(data.train, labels=data.train.labels.to(there)))
    images, labels = _batch(split, Recipe(epochs=1, batch=32), 0, 0, Workers())
    assert (images.device, labels.device, tuple(images.shape)) == (there, there, (32, 3, 24, 24))
